//! `qlora-train push`

use super::answer::Answer;
use crate::adapter::{Publication, publication};
use crate::bail_usage;
use crate::config::path_from_home;
use crate::error::Result;
use crate::files::units::format_bytes;
use crate::hub::{Environment, FileState, HubId, LocalFile, Pushed, Upload, push};
use crate::report::{count, printable, status, warning};
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Args)]
pub struct PushArgs {
    /// Adapter directory: the output_dir of a finished run, one of its checkpoints, or what `export uniform` wrote
    #[arg(value_name = "DIR", value_parser = path_from_home())]
    adapter: PathBuf,
    /// Model on the hub to upload to, org/name
    #[arg(long, value_name = "ORG/NAME")]
    to: String,
    /// Branch [default: main]
    #[arg(long)]
    revision: Option<String>,
    /// Commit message, one line
    #[arg(short, long, default_value = "Upload adapter with qlora-train")]
    message: String,
    /// Create the model on the hub, and the branch, if they do not exist
    #[arg(long)]
    create: bool,
    /// Upload only to a private model; with --create, create it as private
    #[arg(long)]
    private: bool,
    /// List the files with sizes and hashes, without contacting the hub
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: &PushArgs) -> Result<Answer> {
    let Some(id) = HubId::parse(&args.to) else {
        bail_usage!("--to: found {:?}, expected the id of a model on the hub, such as org/name", args.to);
    };
    let id = id.at(args.revision.as_deref())?;
    let revision = id.revision.as_deref().unwrap_or("main");
    if args.message.trim().is_empty() || args.message.contains(['\n', '\r']) {
        bail_usage!("--message: found {:?}, expected one line", args.message);
    }
    let Publication { files, left, warnings } = publication(&args.adapter)?;
    warnings.iter().for_each(|text| warning!("{text}"));
    if !left.is_empty() {
        status!("not sent: {}", left.join(", "));
    }
    if args.dry_run {
        return Ok(dry_run(&id, revision, &files));
    }
    let upload = Upload {
        repository: &id.name,
        revision,
        message: args.message.trim(),
        create: args.create,
        private: args.private,
        files: &files,
    };
    let pushed = push(&Environment::read(), &upload)?;
    Ok(answer(&id, revision, &files, &pushed))
}

fn bytes<'a>(files: impl Iterator<Item = &'a LocalFile>) -> u64 {
    files.map(LocalFile::size).sum()
}

fn described(file: &LocalFile) -> Value {
    json!({"name": file.name(), "size": file.size(), "sha256": file.sha256()})
}

fn dry_run(id: &HubId, revision: &str, files: &[LocalFile]) -> Answer {
    let total = bytes(files.iter());
    let mut lines: Vec<String> = files
        .iter()
        .map(|file| format!("{}  {:>10}  {}", file.sha256(), format_bytes(file.size()), printable(file.name())))
        .collect();
    let what = count(files.len() as u64, "file");
    lines.push(format!("{what}, {} would go to {} ({revision}); nothing was sent", format_bytes(total), id.name));
    Answer {
        text: lines.join("\n"),
        json: json!({
            "repository": id.name,
            "revision": revision,
            "dry_run": true,
            "files": files.iter().map(described).collect::<Vec<_>>(),
            "bytes": total,
        }),
    }
}

fn answer(id: &HubId, revision: &str, files: &[LocalFile], pushed: &Pushed) -> Answer {
    let of = |state: FileState| {
        files.iter().zip(&pushed.sent).filter(move |(_, sent)| **sent == state).map(|(file, _)| file)
    };
    let (sent, known, unchanged) = (of(FileState::Sent), of(FileState::Known), of(FileState::Unchanged).count());
    let (known, sent_bytes) = (known.count(), bytes(of(FileState::Sent)));
    let mut parts = vec![format!("{} sent ({})", count(sent.count() as u64, "file"), format_bytes(sent_bytes))];
    parts.extend((known > 0).then(|| format!("{known} that the hub knew")));
    parts.extend((unchanged > 0).then(|| format!("{unchanged} unchanged")));
    let text = match unchanged == files.len() {
        true => format!("{} has all of it already: {}", id.name, pushed.page),
        false => format!("{}: {}", parts.join(", "), pushed.page),
    };
    let described = |(file, sent): (&LocalFile, &FileState)| {
        let mut described = described(file);
        described["state"] = sent.name().into();
        described
    };
    Answer {
        text,
        json: json!({
            "repository": id.name,
            "revision": revision,
            "commit": pushed.commit,
            "url": pushed.page,
            "created": pushed.created,
            "files": files.iter().zip(&pushed.sent).map(described).collect::<Vec<_>>(),
            "bytes_sent": sent_bytes,
        }),
    }
}
