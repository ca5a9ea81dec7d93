//! Entry points for the fuzz targets to the readers of the hub's answers to an upload, and of the record of an
//! unfinished one.

use std::path::Path;

use ureq::http::HeaderMap;

use super::super::client::{Client, Fault};
use super::super::environment::Environment;
use super::kept::{Begun, Kept};
use super::large::read_place;
use super::local::LocalFile;
use super::request::{Reply, Sender};
use super::{ASKING_MODES, Modes};
use crate::error::Error;

thread_local! {
    static CLIENT: Client = Client::new(&Environment::offline(&[])).expect("the addresses of the hub are known");
}

/// An answer of the hub, read as that to each kind of request about this file. Returns the errors.
pub fn upload_answer(status: u16, text: &[u8], file: &LocalFile) -> Vec<Error> {
    CLIENT.with(|client| {
        let sender = Sender { client, name: "org/mine", uploads: None };
        let reply = Reply { status, headers: HeaderMap::new(), text: text.to_vec() };
        let place = read_place(&sender, &reply, file).map(|begun| {
            if let Some(begun) = begun {
                let parts = begun.places.len() as u64;
                assert!(parts * begun.part >= file.size() && (parts - 1) * begun.part < file.size());
            }
        });
        let modes = sender.read(&reply, ASKING_MODES).and_then(|modes: Modes| modes.of(&sender, &[file]).map(drop));
        let read: [Result<(), Fault>; 2] = [place, modes];
        let faults = read.into_iter().filter_map(|read| read.err().map(Error::from));
        faults.chain([sender.refusal(&reply, "making it")]).collect()
    })
}

/// The parts of a file that are not sent again after a push with this record, in a folder for records.
pub fn upload_record(dir: &Path, record: &[u8], file: &LocalFile) -> usize {
    std::fs::write(dir.join(file.sha256()), record).expect("the folder can be written to");
    let part = file.size().div_ceil(2).max(1);
    let place = |number: u64| format!("https://store/file?uploadId=1&partNumber={number}");
    let begun = Begun {
        hub: "https://huggingface.co".to_owned(),
        repository: "org/mine".to_owned(),
        sha256: file.sha256().to_owned(),
        size: file.size(),
        part,
        places: (1..=file.size().div_ceil(part)).map(place).collect(),
        complete: "https://huggingface.co/complete".to_owned(),
        taken: Vec::new(),
    };
    let mut kept = Kept::open(Some(dir), file.sha256());
    let (begun, _) = kept.begin(begun);
    assert!(begun.taken.len() <= begun.places.len() && begun.taken_bytes() <= file.size());
    // The next start reads what this one keeps.
    drop(kept);
    let (again, _) = Kept::open(Some(dir), file.sha256()).begin(begun.clone());
    assert_eq!(again, begun);
    begun.taken.len()
}
