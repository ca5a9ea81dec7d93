//! The templates offered by name: for bases that have none, and for training where a model's own cuts what is said.

/// A template that `chat_template` names instead of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Builtin {
    Chatml,
    Alpaca,
    Qwen3Training,
    DeepseekR1Training,
}

/// What the source of a built-in template depends on.
pub(crate) struct Vocabulary<'a> {
    /// The tokenizer puts a BOS before plain text, so the rendered text has to begin with it.
    pub begins_with_bos: bool,
    pub has_eos: bool,
    /// Whether the tokenizer has a token of this text.
    pub has: &'a dyn Fn(&str) -> bool,
}

const IM_END: &str = "<|im_end|>";
const R1_ASSISTANT: &str = "<｜Assistant｜>";

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

/// Qwen3's prompt, with every turn's thinking kept and in a block of its own, empty where there was none.
const QWEN3_TRAINING: &str = r#"{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- if messages and messages[0].role == 'system' %}
{{- messages[0].content + '\n\n' }}
{%- endif %}
{{- '# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>' }}
{%- for tool in tools %}
{{- '\n' + (tool | tojson) }}
{%- endfor %}
{{- '\n</tools>\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>' + END_OF_TURN + '\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- set said = message.content or '' %}
{%- set thought = message.reasoning_content or '' %}
{%- if not thought and '</think>' in said %}
{%- set thought = said.split('</think>')[0].split('<think>')[-1] %}
{%- set said = said.split('</think>')[-1] %}
{%- endif %}
{{- '<|im_start|>assistant\n' }}
{%- generation %}
{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + said.lstrip('\n') }}
{%- for call in message.tool_calls or [] %}
{%- if said or not loop.first %}
{{- '\n' }}
{%- endif %}
{%- set arguments = call.function.arguments %}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- arguments if arguments is string else arguments | tojson }}
{{- '}\n</tool_call>' }}
{%- endfor %}
{{- END_OF_TURN }}
{%- endgeneration %}
{{- '\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
{{- '<|im_start|>user' }}
{%- endif %}
{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
{{- END_OF_TURN + '\n' }}
{%- endif %}
{%- elif not (tools and loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\n' + message.content + END_OF_TURN + '\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}"#;

/// DeepSeek-R1's prompt, which opens the thinking of an answer, with every turn's thinking kept.
const DEEPSEEK_R1_TRAINING: &str = r"{%- for message in messages %}
{%- if message.role == 'system' %}
{{- message.content }}
{%- elif message.role == 'user' %}
{{- '<｜User｜>' + message.content }}
{%- elif message.role == 'assistant' and not message.tool_calls %}
{%- set said = message.content or '' %}
{%- set thought = message.reasoning_content or '' %}
{%- if not thought and '</think>' in said %}
{%- set thought = said.split('</think>')[0].split('<think>')[-1] %}
{%- set said = said.split('</think>')[-1] %}
{%- endif %}
{{- '<｜Assistant｜><think>\n' }}
{%- generation %}
{{- thought.strip('\n') + '\n</think>\n\n' + said.lstrip('\n') + END_OF_TURN }}
{%- endgeneration %}
{%- else %}
{{- raise_exception('the template deepseek_r1_training writes no tools') }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<｜Assistant｜><think>\n' }}
{%- endif %}";

impl Builtin {
    pub const ALL: [Builtin; 4] =
        [Builtin::Chatml, Builtin::Alpaca, Builtin::Qwen3Training, Builtin::DeepseekR1Training];

    pub fn name(self) -> &'static str {
        match self {
            Builtin::Chatml => "chatml",
            Builtin::Alpaca => "alpaca",
            Builtin::Qwen3Training => "qwen3_training",
            Builtin::DeepseekR1Training => "deepseek_r1_training",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|builtin| builtin.name() == name)
    }

    /// The built-in template of this source.
    pub(crate) fn of_source(source: &str, vocabulary: &Vocabulary) -> Option<Self> {
        Self::ALL.into_iter().find(|builtin| builtin.source(vocabulary).is_ok_and(|own| own == source))
    }

    /// The training template for models whose own template is this one and cuts what is said.
    pub(crate) fn training(source: &str, vocabulary: &Vocabulary) -> Option<Self> {
        let training = match () {
            () if !source.contains("</think>") => return None,
            () if source.contains(R1_ASSISTANT) => Builtin::DeepseekR1Training,
            () if source.contains("<|im_start|>") => Builtin::Qwen3Training,
            () => return None,
        };
        training.source(vocabulary).ok().filter(|own| own != source).map(|_| training)
    }

    /// Tokens without which the template is not for this vocabulary.
    fn tokens(self) -> &'static [&'static str] {
        match self {
            Builtin::Chatml | Builtin::Alpaca => &[],
            Builtin::Qwen3Training => &["<|im_start|>", IM_END],
            Builtin::DeepseekR1Training => &["<｜User｜>", R1_ASSISTANT],
        }
    }

    /// The template's source. A turn ends with one token that generation can stop at: `<|im_end|>` where the
    /// vocabulary has it (chatml), else the tokenizer's EOS. Errors: it has neither, or lacks the template's own tokens.
    pub(crate) fn source(self, vocabulary: &Vocabulary) -> Result<String, String> {
        if let Some(missing) = self.tokens().iter().find(|token| !(vocabulary.has)(token)) {
            return Err(format!("the template {} needs the token {missing}, which the tokenizer lacks", self.name()));
        }
        let end_of_turn = match self {
            Builtin::Chatml | Builtin::Qwen3Training if (vocabulary.has)(IM_END) => format!("'{IM_END}'"),
            _ if vocabulary.has_eos => "eos_token".to_owned(),
            _ => return Err(format!("the template {} needs an eos_token in tokenizer_config.json", self.name())),
        };
        let body = match self {
            Builtin::Chatml => CHATML,
            Builtin::Alpaca => ALPACA,
            Builtin::Qwen3Training => QWEN3_TRAINING,
            Builtin::DeepseekR1Training => DEEPSEEK_R1_TRAINING,
        };
        let bos = if vocabulary.begins_with_bos { "{{- bos_token }}\n" } else { "" };
        Ok(format!("{bos}{}", body.replace("END_OF_TURN", &end_of_turn)))
    }
}
