use super::*;
use serde_json::json;

#[test]
fn keys_are_known_by_their_words() {
    use Meaning::{Media, Preference, Rating};
    let expected = [
        (Preference, vec!["chosen", "rejected", "Chosen", "REJECTED"]),
        (Rating, vec!["label", "Label", "kto_tag", "KTO_TAG", "ktoTag", "kto-label", "desirable", "is_undesirable"]),
        (Media, vec!["image", "images", "image_path", "imageURL", "img_file", "pixel_values", "video", "audio-paths"]),
    ];
    for (meaning, keys) in expected {
        for key in keys {
            assert_eq!(Meaning::of(key), Some(meaning), "{key}");
        }
    }
    // The caption of an image is text, and so is a key that only contains the word label.
    for key in ["labels", "image_caption", "image_id", "label_name", "reimagined", "file", "data", "choice", ""] {
        assert_eq!(Meaning::of(key), None, "{key}");
    }
    for key in ["response_chosen", "chosenResponse", "dispreferred_answer", "chosen"] {
        assert!(compares(key), "{key}");
    }
    for key in ["well_chosenness", "score", "preferred_language", "preferredName"] {
        assert!(!compares(key), "{key}");
    }
}

#[test]
fn what_is_said_of_a_picture_is_none() {
    let refused = |row: Value| of_other_meaning(row.as_object().unwrap(), false).map(|(key, _)| key.to_owned());
    for row in [json!({"prompt": "a", "image": false}), json!({"text": "a", "videos": 3, "image_url": "http://a/b"})] {
        assert_eq!(refused(row), None);
    }
    assert_eq!(refused(json!({"prompt": "a", "image_url": "http://a/b"})).unwrap(), "image_url");
    assert_eq!(refused(json!({"text": "a", "image": "a.png"})).unwrap(), "image");
    let class = |row: Value| of_other_meaning(row.as_object().unwrap(), true).map(|(key, _)| key.to_owned());
    assert_eq!(class(json!({"text": "a", "label": 1})), None);
    assert_eq!(class(json!({"text": "a", "label": 1, "kto_tag": true})).unwrap(), "kto_tag");
}
