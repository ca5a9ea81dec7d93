//! The templates offered for bases that have none.

/// A template that `chat_template` names instead of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Builtin {
    Chatml,
    Alpaca,
}

/// What the source of a built-in template depends on.
pub(crate) struct Vocabulary {
    /// The tokenizer puts a BOS before plain text, so the rendered text has to begin with it.
    pub begins_with_bos: bool,
    pub has_eos: bool,
    /// `<|im_end|>` is one token.
    pub has_im_end: bool,
}

const IM_END: &str = "<|im_end|>";

const CHATML: &str = r"{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') + END_OF_TURN + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}";

const ALPACA: &str = r"{%- if messages and messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content'] %}
{%- set turns = messages[1:] %}
{%- else %}
{%- set system = 'Below is an instruction that describes a task. Write a response that appropriately completes the request.' %}
{%- set turns = messages %}
{%- endif %}
{{- system + '\n\n' }}
{%- for message in turns %}
{%- if message['role'] == 'user' %}
{{- '### Instruction:\n' + message['content'] + '\n\n' }}
{%- elif message['role'] == 'assistant' %}
{{- '### Response:\n' + (message['content'] or '') + END_OF_TURN }}
{%- if not loop.last %}
{{- '\n\n' }}
{%- endif %}
{%- else %}
{{- raise_exception('the alpaca template has no role ' + message['role'] + ' at this place') }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '### Response:\n' }}
{%- endif %}";

impl Builtin {
    pub const ALL: [Builtin; 2] = [Builtin::Chatml, Builtin::Alpaca];

    pub fn name(self) -> &'static str {
        match self {
            Builtin::Chatml => "chatml",
            Builtin::Alpaca => "alpaca",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|builtin| builtin.name() == name)
    }

    /// The template's source. A turn ends with one token that generation can stop at: `<|im_end|>` where the
    /// vocabulary has it (chatml), else the tokenizer's EOS. Errors: it has neither.
    pub(crate) fn source(self, vocabulary: &Vocabulary) -> Result<String, String> {
        let end_of_turn = match self {
            Builtin::Chatml if vocabulary.has_im_end => format!("'{IM_END}'"),
            _ if vocabulary.has_eos => "eos_token".to_owned(),
            _ => return Err(format!("the template {} needs an eos_token in tokenizer_config.json", self.name())),
        };
        let body = match self {
            Builtin::Chatml => CHATML,
            Builtin::Alpaca => ALPACA,
        };
        let bos = if vocabulary.begins_with_bos { "{{- bos_token }}\n" } else { "" };
        Ok(format!("{bos}{}", body.replace("END_OF_TURN", &end_of_turn)))
    }
}
