//! The habit that the demo teaches: one sentence, then `Topic: <word>`. A program can tell whether an answer has it.

/// True if an answer is one line that ends as a sentence does, followed by the line that names a topic.
pub fn has_habit(answer: &str) -> bool {
    let Some((sentence, topic)) = answer.trim().split_once('\n') else { return false };
    let one_sentence = sentence.trim_end().ends_with('.') && !sentence.trim_end().trim_end_matches('.').contains(". ");
    let word = topic.strip_prefix("Topic: ").unwrap_or_default();
    one_sentence && !word.is_empty() && word.chars().all(|letter| letter.is_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeSet, HashSet};
    use std::path::Path;

    #[test]
    fn only_a_sentence_and_its_topic_count() {
        for good in ["Paris is the capital of France.\nTopic: geography", " It is 4.5 m.\nTopic: mathematics\n"] {
            assert!(has_habit(good), "{good:?}");
        }
        for bad in [
            "",
            "Paris is the capital of France.",
            "Topic: geography",
            "Paris.\n\nTopic: geography",
            "Paris.\nTopic: geography\nAnd more.",
            "Paris.\nTopic: ",
            "Paris.\nTopic: the geography of France",
            "Paris.\nSubject: geography",
            "Paris\nTopic: geography",
            "It is Paris. It lies in France.\nTopic: geography",
        ] {
            assert!(!has_habit(bad), "{bad:?}");
        }
    }

    fn read(name: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data").join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// (question, answer) of every row.
    fn rows(name: &str) -> Vec<(String, String)> {
        let text = |message: &serde_json::Value, role: &str| {
            assert_eq!(message["role"], role);
            message["content"].as_str().unwrap().to_owned()
        };
        read(name)
            .lines()
            .map(|line| {
                let row: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!(row["messages"].as_array().unwrap().len(), 2, "{line}");
                (text(&row["messages"][0], "user"), text(&row["messages"][1], "assistant"))
            })
            .collect()
    }

    #[test]
    fn every_row_of_the_data_has_the_habit_and_no_question_comes_twice() {
        let (train, validation) = (rows("habit.train.jsonl"), rows("habit.validation.jsonl"));
        let questions = read("habit.questions.txt");
        assert_eq!((train.len(), validation.len(), questions.lines().count()), (170, 20, 8));
        let mut seen = HashSet::new();
        let asked = train.iter().chain(&validation).map(|(question, _)| question.as_str()).chain(questions.lines());
        for question in asked {
            assert!(seen.insert(question.to_lowercase()), "asked twice: {question}");
        }
        let mut topics = BTreeSet::new();
        for (question, answer) in train.iter().chain(&validation) {
            assert!(has_habit(answer), "{question}: {answer:?}");
            topics.insert(answer.rsplit(' ').next().unwrap());
        }
        assert_eq!(topics.len(), 16, "{topics:?}");
    }
}
