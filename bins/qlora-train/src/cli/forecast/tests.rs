use super::*;
use crate::config::GPUS;

fn forecast(source: Source, price: Option<f64>, update: f64) -> Forecast {
    let speed = Speed { machine: "H100".to_owned(), source, token: 1e-4, evaluated_token: 0.5e-4, update };
    let (samples, evaluation) = (Vec::new(), Vec::new());
    let (steps, tokens, evaluated, micro_batches) = (100, 36_000_000.0, 3_600_000.0, 1.0);
    let size = RunSize { steps, tokens, evaluated, micro_batches, busiest: 1.0, samples, evaluation };
    Forecast { speed, size, price, world: World::ALONE }
}

#[test]
fn processes_share_the_time_and_each_machine_costs() {
    let alone = forecast(Source::Predicted, Some(2.5), 0.6);
    let size = RunSize { busiest: 0.25, ..alone.size.clone() };
    let world = World { size: 4, here: 2 };
    let shared = Forecast { size, world, ..forecast(Source::Predicted, Some(2.5), 0.6) };
    let number = |forecast: &Forecast, key: &str| forecast.json()[key].as_f64().unwrap();
    // 36 s of tokens, and the update, which each process does.
    for (key, expected) in [("step_seconds", [36.6, 9.6]), ("evaluation_seconds", [180.0, 45.0])] {
        let found = [&alone, &shared].map(|forecast| number(forecast, key));
        assert!(found.iter().zip(expected).all(|(found, of)| (found - of).abs() < 1e-9), "{key}: {found:?}");
    }
    assert!((number(&shared, "cost") - 2.0 * 2.5 * (960.0 + 45.0) / 3600.0).abs() < 1e-9);
    assert!(shared.text().ends_with("; at 2.5 an hour for a machine: 1.40"), "{}", shared.text());
}

#[test]
fn hours_and_cost_follow_from_tokens_and_say_where_they_come_from() {
    let text = forecast(Source::Predicted, Some(2.5), 0.0).text();
    assert_eq!(
        text,
        "forecast, H100: 36s a step (predicted, not measured)\nforecast, H100: 100 steps of 36,000,000 tokens in all: \
         1.05 hours, 3m00s of them evaluations; at 2.5 an hour: 2.62"
    );
    let json = forecast(Source::Datasheet, None, 0.0).json();
    assert_eq!(
        (json["source"].as_str(), json["hours"].as_f64(), json["cost"].as_f64()),
        (Some("datasheet"), Some(1.05), None)
    );
    // 100 updates of 3.6 s.
    let json = forecast(Source::Measured, None, 3.6).json();
    assert_eq!((json["source"].as_str(), json["hours"].as_f64()), (Some("measured"), Some(1.15)));
}

#[test]
fn a_small_price_is_not_shown_as_nothing() {
    let amounts = [0.0, 2.5, 0.0999, 0.05, 0.0012, 3.5e-5, 2e-9].map(amount);
    assert_eq!(amounts, ["0.00", "2.50", "0.10", "0.050", "0.0012", "0.000035", "2.0e-9"]);
    let text = forecast(Source::Predicted, Some(0.001), 0.0).text();
    assert!(text.ends_with("; at 0.001 an hour: 0.0011") || text.ends_with(": 0.0010"), "{text}");
}

#[test]
fn a_predicted_card_is_that_of_its_whole_name_and_a_peak_is_no_other_cards() {
    let cards = ["A100", "A6000", "L40S", "4090", "H100", "5090"];
    let predicted = |name: &str| cards.iter().any(|card| is_card(name, card));
    let named: Vec<&str> = GPUS.iter().map(|gpu| gpu.name).filter(|name| predicted(name)).collect();
    assert_eq!(named, ["L40S", "RTX A6000", "RTX 4090", "RTX 5090", "A100", "H100"]);
    for (name, peak) in [
        ("H100 PCIe", Some(756e12)),
        ("H200", Some(989e12)),
        ("RTX 3090 Ti", Some(80e12)),
        ("RTX A4000", Some(77e12)),
        ("RTX A5000", None),
        ("RTX 4090 D", None),
        ("RTX 5090 D", None),
        ("H20", None),
        ("RTX PRO 6000", None),
        ("L4", None),
    ] {
        assert_eq!(peak_flops(name), peak, "{name}");
    }
}
