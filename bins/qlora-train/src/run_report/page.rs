//! The page as a template that escapes all values, and the blocks of its sections.

use minijinja::{Environment, Value, context};
use std::sync::LazyLock;

static PAGE: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    // minijinja escapes what a template of an .html name writes.
    environment.add_template("page.html", include_str!("page.html")).expect("the template is well-formed");
    environment
});

pub struct Section {
    pub id: &'static str,
    pub title: &'static str,
    pub blocks: Vec<Value>,
}

pub fn text(text: impl Into<String>) -> Value {
    context! { kind => "text", text => clean(&text.into()) }
}

/// A chart and what it shows; nothing where it is empty.
pub fn chart(svg: String, caption: impl Into<String>) -> Option<Value> {
    (!svg.is_empty())
        .then(|| context! { kind => "svg", svg => Value::from_safe_string(svg), text => clean(&caption.into()) })
}

pub fn table(caption: &str, head: &[&str], rows: Vec<Vec<String>>) -> Option<Value> {
    let rows: Vec<Vec<String>> = rows.into_iter().map(|row| row.iter().map(|cell| clean(cell)).collect()).collect();
    let head: Vec<String> = head.iter().map(|cell| clean(cell)).collect();
    (!rows.is_empty()).then(|| context! { kind => "table", text => caption, head => head, rows => rows })
}

/// Horizontal bars: name, length, figure.
pub fn bars(caption: &str, bars: Vec<(String, f64, String)>) -> Option<Value> {
    let most = bars.iter().map(|bar| bar.1).fold(0.0, f64::max);
    if most <= 0.0 || !most.is_finite() {
        return None;
    }
    let bars: Vec<Value> = bars
        .into_iter()
        .map(|(name, length, value)| {
            let share = format!("{:.1}", 100.0 * length / most);
            context! { name => clean(&name), share => share, value => value }
        })
        .collect();
    Some(context! { kind => "bars", text => caption, bars => bars })
}

pub fn code(lead: &str, code: &str) -> Value {
    context! { kind => "code", text => lead, code => clean(code) }
}

pub fn details(summary: &str, code: &str) -> Value {
    context! { kind => "details", text => summary, code => clean(code) }
}

/// Text without characters that could move the cursor or change the direction of writing; the template escapes markup.
pub fn clean(text: &str) -> String {
    crate::report::printable_lines(text).into_owned()
}

pub struct Page {
    pub title: String,
    pub kicker: String,
    pub verdict: String,
    pub figures: Vec<(String, String)>,
    /// Time, message, name
    pub warnings: Vec<(String, String, String)>,
    pub sections: Vec<Section>,
}

impl Page {
    pub fn html(self) -> String {
        let warnings: Vec<Value> = self
            .warnings
            .into_iter()
            .map(|(when, message, name)| context! { when => clean(&when), message => clean(&message), name => clean(&name) })
            .collect();
        let sections: Vec<Value> = self
            .sections
            .into_iter()
            .filter(|section| !section.blocks.is_empty())
            .map(|section| context! { id => section.id, title => section.title, blocks => section.blocks })
            .collect();
        let figures: Vec<(String, String)> =
            self.figures.into_iter().map(|(name, value)| (clean(&name), clean(&value))).collect();
        let page = PAGE.get_template("page.html").expect("it was added").render(context! {
            title => clean(&self.title),
            kicker => clean(&self.kicker),
            verdict => clean(&self.verdict),
            style => Value::from_safe_string(include_str!("page.css").to_owned()),
            figures => figures,
            warnings => warnings,
            sections => sections,
            footer => format!(
                "Made by qlora-train {} from run.json, metrics.jsonl and report.json. Nothing in this page is loaded from \
                 elsewhere.",
                env!("CARGO_PKG_VERSION")
            ),
        });
        clean(&page.expect("the template has what it asks for"))
    }
}
