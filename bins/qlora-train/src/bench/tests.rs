use super::*;
use crate::arch::LayerArch;
use crate::arch::shapes::shape;

#[test]
fn flops_follow_from_parameters_and_length() {
    let of = |seq, batch| Shape { config: shape("llama-3-70b").unwrap(), seq, batch, steps: 1 }.flops();
    // 69,501,714,432 parameters of linear layers, lm_head included; 80 layers of 64 heads of 128.
    let linear = 4.0 * 69_501_714_432.0 * 2048.0;
    assert_eq!(of(2048, 1), linear + 6.0 * 2048.0 * 2048.0 * 8192.0 * 80.0);
    assert_eq!(of(2048, 3), 3.0 * of(2048, 1));
    assert!(of(4096, 1) > 2.0 * of(2048, 1));
    // Rows side by side do not look at each other, nor do queries look beyond a window.
    let arch = shape("llama-3-70b").unwrap();
    assert!(step_flops(&arch, [2048, 2048].into_iter()) < step_flops(&arch, [4096].into_iter()));
    let layers = arch.layers.iter().map(|layer| LayerArch { window: Some(512), ..layer.clone() }).collect();
    let seen = 2.0 * 512.0 - 512.0 * 512.0 / 2048.0;
    let windowed = step_flops(&Arch { layers, ..arch }, [2048].into_iter());
    assert_eq!(windowed, linear + 6.0 * 2048.0 * seen * 8192.0 * 80.0);
}

#[test]
fn rows_end_where_they_should() {
    let arch = crate::base::synthetic::tiny_arch();
    let row = |length, learned| RowShape { length, learned };
    let tokens = Tokens::new(&arch, &[row(4, 3); 2], 5, 1);
    assert_eq!(tokens.positions, [0, 1, 2, 3, 0, 1, 2, 3]);
    assert_eq!(tokens.boundaries, [0, 4, 8]);
    assert!(tokens.targets[3] < 0 && tokens.targets[7] < 0 && tokens.batch().supervised() == 6);
    assert_eq!(tokens.targets[4], tokens.input_ids[5] as i32);
    let last = Tokens::new(&arch, &[row(4, 1); 2], 5, 1);
    assert!(last.targets[..2] == [-100; 2] && last.targets[2] == last.input_ids[3] as i32);
    assert_eq!(last.batch().supervised(), 2);
    let ragged = Tokens::new(&arch, &[row(2, 1), row(5, 2)], 5, 1);
    assert_eq!((&ragged.boundaries[..], &ragged.positions[..]), (&[0, 2, 7][..], &[0, 1, 0, 1, 2, 3, 4][..]));
    let learned: Vec<bool> = ragged.targets.iter().map(|&target| target >= 0).collect();
    assert_eq!(learned, [true, false, false, false, true, true, false]);
    assert_ne!(Tokens::new(&arch, &[row(9, 8)], 5, 2).input_ids, Tokens::new(&arch, &[row(9, 8)], 5, 1).input_ids);
}
