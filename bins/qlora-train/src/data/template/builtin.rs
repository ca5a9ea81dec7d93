//! The templates offered for bases that have none.

/// A template that `chat_template` names instead of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Builtin {
    Chatml,
    Alpaca,
    Llama2,
    Llama3,
    Mistral,
    Zephyr,
    Vicuna,
    Gemma,
    Phi3,
    Qwen3Training,
    DeepseekR1Training,
}

/// The names in use, the first of each being our own: those of Axolotl, LLaMA-Factory and Unsloth too, where the text
/// is the same. Hyphens and dots are underscores.
const NAMES: [(Builtin, &[&str]); 11] = [
    (Builtin::Chatml, &["chatml", "chat_ml", "qwen3_nothink", "yi", "smollm"]),
    (Builtin::Alpaca, &["alpaca"]),
    (Builtin::Llama2, &["llama2", "llama_2"]),
    (Builtin::Llama3, &["llama3", "llama_3"]),
    (Builtin::Mistral, &["mistral"]),
    (Builtin::Zephyr, &["zephyr"]),
    (Builtin::Vicuna, &["vicuna"]),
    (Builtin::Gemma, &["gemma", "gemma2", "gemma_2", "gemma3", "gemma_3"]),
    (Builtin::Qwen3Training, &["qwen3_training"]),
    (Builtin::DeepseekR1Training, &["deepseek_r1_training"]),
    (Builtin::Phi3, &["phi3", "phi", "phi_3", "phi_35", "phi3_5", "phi_3_5"]),
];

/// The vocabulary that the source of a built-in template depends on.
pub(crate) struct Vocabulary<'a> {
    /// The tokenizer puts a BOS before plain text, so the rendered text has to begin with it.
    pub begins_with_bos: bool,
    pub has_eos: bool,
    /// True if a text is one token.
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

const LLAMA3: &str = r"{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + (message['content'] or '') | trim + END_OF_TURN }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}";

const ZEPHYR: &str = r"{%- for message in messages %}
{{- '<|' + message['role'] + '|>\n' + (message['content'] or '') + END_OF_TURN + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\n' }}
{%- endif %}";

/// The markup is Zephyr's; the token that ends a turn is another.
const PHI3: &str = ZEPHYR;

/// Beginning of the templates that have no system turn: the system text is part of the first user turn.
const SYSTEM_IN_FIRST_TURN: &str = r"{%- if messages and messages[0]['role'] == 'system' %}
{%- set system = SYSTEM_TEXT %}
{%- set turns = messages[1:] %}
{%- else %}
{%- set system = '' %}
{%- set turns = messages %}
{%- endif %}
";

const LLAMA2: &str = r"{%- for message in turns %}
{%- if message['role'] == 'user' %}
{{- BOS_OF_TURN + '[INST] ' + (system if loop.first else '') + (message['content'] or '') | trim + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}
{{- ' ' + (message['content'] or '') | trim + ' ' + END_OF_TURN }}
{%- else %}
{{- raise_exception('this template has no role ' + message['role'] + ' at this place') }}
{%- endif %}
{%- endfor %}";

const MISTRAL: &str = r"{%- for message in turns %}
{%- if message['role'] == 'user' %}
{{- '[INST] ' + (system if loop.first else '') + (message['content'] or '') + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}
{{- ' ' + (message['content'] or '') + END_OF_TURN }}
{%- else %}
{{- raise_exception('this template has no role ' + message['role'] + ' at this place') }}
{%- endif %}
{%- endfor %}";

const GEMMA: &str = r"{%- for message in turns %}
{%- if message['role'] == 'user' %}
{{- '<start_of_turn>user\n' + (system if loop.first else '') + (message['content'] or '') | trim + '<end_of_turn>\n' }}
{%- elif message['role'] == 'assistant' %}
{{- '<start_of_turn>model\n' + (message['content'] or '') | trim + END_OF_TURN + '\n' }}
{%- else %}
{{- raise_exception('this template has no role ' + message['role'] + ' at this place') }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<start_of_turn>model\n' }}
{%- endif %}";

const VICUNA: &str = r"{{- (system or 'A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user\'s questions.') }}
{%- for message in turns %}
{%- if message['role'] == 'user' %}
{{- ' USER: ' + (message['content'] or '') | trim }}
{%- elif message['role'] == 'assistant' %}
{{- ' ASSISTANT: ' + (message['content'] or '') | trim + END_OF_TURN }}
{%- else %}
{{- raise_exception('this template has no role ' + message['role'] + ' at this place') }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- ' ASSISTANT:' }}
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
    pub fn all() -> impl Iterator<Item = Builtin> {
        NAMES.iter().map(|(builtin, _)| *builtin)
    }

    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(builtin, _)| *builtin == self).map_or("", |(_, names)| names[0])
    }

    /// The names that are offered, for messages.
    pub fn offered() -> String {
        NAMES.iter().map(|(_, names)| names[0]).collect::<Vec<_>>().join(", ")
    }

    /// The built-in template with this name, or another of its names.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.trim().to_ascii_lowercase().replace(['-', '.'], "_");
        NAMES.iter().find(|(_, names)| names.contains(&name.as_str())).map(|(builtin, _)| *builtin)
    }

    /// The built-in template of this source.
    pub(crate) fn of_source(source: &str, vocabulary: &Vocabulary) -> Option<Self> {
        Self::all().find(|builtin| builtin.source(vocabulary).is_ok_and(|own| own == source))
    }

    /// The training template for models whose own template has this source and cuts what is said.
    pub(crate) fn training(source: &str, vocabulary: &Vocabulary) -> Option<Self> {
        let training = match () {
            () if !source.contains("</think>") => return None,
            () if source.contains(R1_ASSISTANT) => Builtin::DeepseekR1Training,
            () if source.contains("<|im_start|>") => Builtin::Qwen3Training,
            () => return None,
        };
        training.source(vocabulary).ok().filter(|own| own != source).map(|_| training)
    }

    /// A token without which the template is not for this vocabulary.
    fn token(self) -> Option<&'static str> {
        match self {
            Builtin::Qwen3Training => Some("<|im_start|>"),
            Builtin::DeepseekR1Training => Some(R1_ASSISTANT),
            _ => None,
        }
    }

    /// Source, the token that ends a turn (none: the tokenizer's EOS), and whether that token must be there.
    fn body(self) -> (String, Option<&'static str>, bool) {
        let without_system = |system: &str, body: &str| SYSTEM_IN_FIRST_TURN.replace("SYSTEM_TEXT", system) + body;
        let plain = "messages[0]['content'] + '\\n\\n'";
        match self {
            Builtin::Chatml => (CHATML.to_owned(), Some(IM_END), false),
            Builtin::Alpaca => (ALPACA.to_owned(), None, false),
            Builtin::Llama3 => (LLAMA3.to_owned(), Some("<|eot_id|>"), true),
            Builtin::Zephyr => (ZEPHYR.to_owned(), None, false),
            Builtin::Qwen3Training => (QWEN3_TRAINING.to_owned(), Some(IM_END), true),
            Builtin::DeepseekR1Training => (DEEPSEEK_R1_TRAINING.to_owned(), None, false),
            Builtin::Phi3 => (PHI3.to_owned(), Some("<|end|>"), true),
            Builtin::Gemma => (without_system(plain, GEMMA), Some("<end_of_turn>"), true),
            Builtin::Llama2 => {
                (without_system("'<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n'", LLAMA2), None, false)
            }
            Builtin::Mistral => (without_system(plain, MISTRAL), None, false),
            Builtin::Vicuna => (without_system("messages[0]['content']", VICUNA), None, false),
        }
    }

    /// The template's source. A turn ends with one token that generation can stop at: the template's own if the
    /// vocabulary has it, otherwise the tokenizer's EOS. Errors: it has neither, or lacks one that the template cannot
    /// do without.
    pub(crate) fn source(self, vocabulary: &Vocabulary) -> Result<String, String> {
        let name = self.name();
        if let Some(missing) = self.token().filter(|token| !(vocabulary.has)(token)) {
            return Err(format!("the template {name} needs the token {missing}, which the tokenizer lacks"));
        }
        let (body, end, needed) = self.body();
        let end_of_turn = match end {
            Some(end) if (vocabulary.has)(end) => format!("'{end}'"),
            Some(end) if needed => {
                return Err(format!(
                    "the template {name} ends turns with {end}, which is no token of this tokenizer; choose another \
                     chat_template"
                ));
            }
            _ if vocabulary.has_eos => "eos_token".to_owned(),
            _ => return Err(format!("the template {name} needs an eos_token in tokenizer_config.json")),
        };
        // Llama 2 begins every user turn with BOS.
        let of_turn = self == Builtin::Llama2;
        let bos = if vocabulary.begins_with_bos && !of_turn { "{{- bos_token }}\n" } else { "" };
        let bos_of_turn = if vocabulary.begins_with_bos { "bos_token" } else { "''" };
        Ok(format!("{bos}{}", body.replace("END_OF_TURN", &end_of_turn).replace("BOS_OF_TURN", bos_of_turn)))
    }
}
