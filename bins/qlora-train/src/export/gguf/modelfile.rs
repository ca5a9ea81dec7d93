//! Ollama's Modelfile beside a GGUF file: the chat template in Go's language, and the texts that end an answer.
//!
//! Ollama does not read Jinja. A template that writes each turn by its role alone, whatever the turns around it, is
//! recognized by a few renderings and written as a loop over the turns; any other is left out, with a note.

use crate::data::{ChatTokenizer, Message};

/// Contents that no template changes, and that differ in their first and last characters.
const SYSTEM: &str = "Alpha probe 1q";
const USER: &str = "Beta probe 2w";
const ANSWER: &str = "Gamma probe 3x";
const NEXT: &str = "Delta probe 4r";

/// A chat template: turns by role and content, and whether to open an answer. `None`: it does not take them.
type Render<'a> = dyn Fn(&[(&str, &str)], bool) -> Option<String> + 'a;

/// The texts before and after a turn's content.
#[derive(Clone, Debug, PartialEq)]
struct Around(String, String);

/// A template that is one text for each turn.
#[derive(Clone, Debug, PartialEq)]
struct Turns {
    /// Before all turns
    lead: String,
    /// Behind the lead where there is no system message
    default_system: String,
    /// `None`: the template takes no system message.
    system: Option<Around>,
    user: Around,
    assistant: Around,
    /// The beginning of an answer.
    opening: String,
}

impl Turns {
    /// `None`: the text of a turn depends on more than its role.
    fn of(render: &Render, bos: Option<&str>) -> Option<Self> {
        let around = |text: &str, content: &str| {
            let (before, after) = text.split_once(content)?;
            Some((before.to_owned(), after.to_owned()))
        };
        let (user, answer, next) = (("user", USER), ("assistant", ANSWER), ("user", NEXT));
        let question = render(&[user], false)?;
        let opening = render(&[user], true)?.strip_prefix(question.as_str())?.to_owned();
        let (first, user_close) = around(&question, USER)?;
        let (before, assistant_close) = around(&render(&[user, answer], false)?, ANSWER)?;
        let assistant_open = around(&before, USER)?.1.strip_prefix(user_close.as_str())?.to_owned();
        let (_, rest) = around(&render(&[user, answer, next], false)?, ANSWER)?;
        let user_open = around(&rest, NEXT)?.0.strip_prefix(assistant_close.as_str())?.to_owned();
        let before_user = first.strip_suffix(user_open.as_str())?;
        let lead = bos.filter(|bos| before_user.starts_with(bos)).unwrap_or("");
        let system = match render(&[("system", SYSTEM), user], false) {
            None => None,
            Some(text) => {
                let (open, rest) = around(&text, SYSTEM)?;
                let close = around(&rest, USER)?.0.strip_suffix(user_open.as_str())?.to_owned();
                Some(Around(open.strip_prefix(lead)?.to_owned(), close))
            }
        };
        let turns = Self {
            lead: lead.to_owned(),
            default_system: before_user[lead.len()..].to_owned(),
            system,
            user: Around(user_open, user_close),
            assistant: Around(assistant_open, assistant_close),
            opening,
        };
        let tried: [&[(&str, &str)]; 5] = [
            &[user],
            &[user, answer, next],
            &[next, answer, user, answer, next],
            &[("system", SYSTEM), user],
            &[("system", SYSTEM), user, answer, next, answer, user],
        ];
        let holds = |case: &&[(&str, &str)]| match (case[0].0, &turns.system) {
            ("system", None) => true,
            _ => render(case, true) == Some(turns.render(case)),
        };
        tried.iter().all(holds).then_some(turns)
    }

    fn render(&self, turns: &[(&str, &str)]) -> String {
        let mut text = self.lead.clone();
        if turns[0].0 != "system" {
            text += &self.default_system;
        }
        for (role, content) in turns {
            let around = match *role {
                "system" => self.system.as_ref(),
                "user" => Some(&self.user),
                _ => Some(&self.assistant),
            };
            if let Some(Around(open, close)) = around {
                text += &format!("{open}{content}{close}");
            }
        }
        text + &self.opening
    }

    /// The Go template for Ollama, without the lead if Ollama writes it itself (`adds_bos`).
    fn to_go(&self, adds_bos: bool) -> String {
        let turn = |Around(open, close): &Around| format!("{}{{{{ .Content }}}}{}", literal(open), literal(close));
        let mut go = if adds_bos { String::new() } else { literal(&self.lead) };
        if !self.default_system.is_empty() {
            go += &format!("{{{{ if not .System }}}}{}{{{{ end }}}}", literal(&self.default_system));
        }
        go += "{{ range .Messages }}{{ if eq .Role \"user\" }}";
        go += &turn(&self.user);
        go += "{{ else if eq .Role \"assistant\" }}";
        go += &turn(&self.assistant);
        if let Some(system) = &self.system {
            go += "{{ else if eq .Role \"system\" }}";
            go += &turn(system);
        }
        go += "{{ end }}{{ end }}";
        go + &literal(&self.opening)
    }
}

/// Text of a Go template. The marks that open an action in Go are written by an action.
fn literal(text: &str) -> String {
    text.replace("{{", "{{ \"{{\" }}")
}

/// A Modelfile, and a note where it has no template.
pub(super) struct Modelfile {
    pub text: String,
    pub note: Option<String>,
}

/// `from` is the file of the model, `adapter` that of an adapter on it. `stops` end an answer.
pub(super) fn modelfile(tokenizer: &ChatTokenizer, from: &str, adapter: Option<&str>, stops: &[String]) -> Modelfile {
    let mut text = format!("FROM ./{from}\n");
    if let Some(adapter) = adapter {
        text += &format!("ADAPTER ./{adapter}\n");
    }
    let (template, note) = match tokenizer.template() {
        None => (None, None),
        Some(_) => {
            let render = |turns: &[(&str, &str)], open: bool| {
                let messages: Vec<Message> = turns.iter().map(|(role, content)| Message::new(role, content)).collect();
                tokenizer.render(&messages, open).ok()
            };
            let adds_bos = tokenizer.begins_with_bos();
            let turns = Turns::of(&render, tokenizer.special_token("bos_token"));
            let go = turns.map(|turns| turns.to_go(adds_bos)).filter(|go| !go.contains("\"\"\""));
            let note = go.is_none().then(|| {
                "the Modelfile has no TEMPLATE: what the chat template writes of a turn depends on the turns around it, \
                 which Ollama's language for templates is not given; llama.cpp reads the template in the GGUF file"
                    .to_owned()
            });
            (go, note)
        }
    };
    match &template {
        Some(go) => text += &format!("TEMPLATE \"\"\"{go}\"\"\"\n"),
        None if note.is_some() => text += "# No TEMPLATE: Ollama's templates cannot express this chat template.\n",
        None => {}
    }
    for stop in stops.iter().filter(|stop| !stop.contains(['"', '\n', '\\'])) {
        text += &format!("PARAMETER stop \"{stop}\"\n");
    }
    Modelfile { text, note }
}

#[cfg(test)]
mod tests;
