use super::*;

fn seconds(work: &[OpWork]) -> Vec<f64> {
    Rates::all().iter().filter_map(|rates| rates.seconds(work)).collect()
}

#[test]
fn a_step_takes_the_sum_of_its_operations() {
    let linear = OpWork { name: "linear", count: 3, units: 1e12, ..OpWork::default() };
    let twice = OpWork { count: 6, ..linear.clone() };
    let (once, twice) = (seconds(std::slice::from_ref(&linear)), seconds(&[twice]));
    assert_eq!(once.len(), 6);
    for (once, twice) in once.iter().zip(&twice) {
        assert!(*once > 0.0 && (twice / once - 2.0).abs() < 1e-12);
    }
    // Kinds of other families than that whose steps the rates are of.
    let names = [
        "norm of q and k",
        "norm of q and k, backward",
        "norm and rotation of q and k",
        "norm and rotation of q and k, backward",
        "embedding",
        "output layer and loss",
        "attention, backward",
    ];
    let all = names.map(|name| OpWork { name, count: 1, units: 1.0, ..OpWork::default() });
    // One without a rate goes at that of another.
    let like = OpWork { name: "magnitudes", at_rate_of: Some(NORM), ..all[0].clone() };
    let norm = OpWork { name: NORM, ..all[0].clone() };
    assert_eq!(seconds(&[like]), seconds(&[norm]));
    assert_eq!(seconds(&all).len(), 6);
    assert!(seconds(&[OpWork { name: "sorting", ..linear }]).is_empty());
    let fastest = Rates::all().into_iter().min_by(|a, b| {
        let of = |rates: &Rates| rates.seconds(&all[5..]).unwrap();
        of(a).total_cmp(&of(b))
    });
    assert_eq!(fastest.unwrap().card, FASTEST);
}
