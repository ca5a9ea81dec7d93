use super::*;

fn row(labels: &[i32], weights: &[f32]) -> Row {
    let input_ids = (0..labels.len() as u32).map(|at| at * 40_000).collect();
    Row { input_ids, labels: labels.to_vec(), weights: weights.to_vec(), file: 0, line: 1, task: None }
}

#[test]
fn bytes_give_the_row_again_and_other_rows_have_other_bytes() {
    let learned = |count: i32| (0..count).map(|at| if at % 3 == 0 { -100 } else { at * 40_000 }).collect();
    let mut rows: Vec<Row> = (0..20).map(learned).map(|labels: Vec<i32>| row(&labels, &[])).collect();
    rows.push(row(&[-100, 40_000, 7], &[]));
    rows.push(row(&[-100, 40_000, 80_000], &[1.0, 0.5, f32::from_bits(1)]));
    rows.push(row(&[-100, 40_000, 80_000], &[1.0, -0.0, 0.0]));
    rows.push(row(&[-100, 40_000, 80_000], &[1.0, 0.0, 0.0]));
    rows.push(row(&[5, 6], &[2.0, 3.0]));
    let mut seen = std::collections::HashSet::new();
    for row in &rows {
        let mut bytes = vec![9; 3];
        let form = encode(row, &mut bytes);
        assert_eq!(bytes.len() as u64, form.size(row.len() as u32), "{row:?}");
        assert_eq!(RowForm::from_byte(form.to_byte()), Some(form));
        let (ids, labels, weights) = decode(form, row.len() as u32, &bytes);
        assert_eq!((&ids, &labels), (&row.input_ids, &row.labels));
        let bits = |weights: &[f32]| weights.iter().map(|weight| weight.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&weights), bits(&row.weights));
        assert_eq!(hash(form, &bytes), row_hash(row));
        let (tokens, supervised) = (row.len() as u32, row.supervised() as u32);
        let vocab_size = 20 * 40_000;
        assert_eq!(is_row(form, tokens, supervised, &bytes, vocab_size), supervised > 0, "{row:?}");
        assert!(!is_row(form, tokens, supervised + 1, &bytes, vocab_size));
        assert!(!is_row(form, tokens + 9, supervised, &bytes, vocab_size));
        assert!(!is_row(form, tokens, supervised, &bytes, row.input_ids.last().map_or(0, |&id| id as usize)));
        assert!(seen.insert(row_hash(row)), "{row:?}");
    }
    assert_eq!(RowForm::from_byte(4), None);
}

#[test]
fn rows_that_no_program_writes_are_told() {
    let is_row = |row: &Row| {
        let mut bytes = Vec::new();
        let form = encode(row, &mut bytes);
        is_row(form, row.len() as u32, row.supervised() as u32, &bytes, 100_000)
    };
    assert!(is_row(&row(&[-100, 7, 80_000], &[1.0, 0.0, 2.0])));
    for labels in [[-100, -7, 80_000], [-100, 100_000, 80_000], [i32::MIN, 7, 80_000]] {
        assert!(!is_row(&row(&labels, &[])), "{labels:?}");
    }
    // A bit behind the last of three tokens, which counts as a token that is learned.
    let mut bytes = Vec::new();
    let form = encode(&row(&[-100, -100, 80_000], &[]), &mut bytes);
    assert!(super::is_row(form, 3, 1, &bytes, 100_000));
    *bytes.last_mut().unwrap() = 1 << 3;
    assert!(!super::is_row(form, 3, 1, &bytes, 100_000));
    for weight in [f32::NAN, f32::INFINITY, -1.0] {
        assert!(!is_row(&row(&[-100, 40_000, 80_000], &[1.0, weight, 1.0])), "{weight}");
    }
}
