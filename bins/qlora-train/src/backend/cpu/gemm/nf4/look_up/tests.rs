use super::*;

/// Values of a group, and sums of its products.
struct Group {
    codes: [u8; GROUP / 2],
    scale: f32,
    values: [f32; GROUP],
    sums: [f32; GROUP],
}

impl Work for &mut Group {
    fn run(self, look_up: &impl LookUp) {
        self.values = look_up.values(self.codes, self.scale);
        let once = look_up.add(self.codes, -0.7, &x(), look_up.zeros());
        self.sums = look_up.stored(look_up.add(self.codes, self.scale, &x(), once));
    }
}

fn x() -> [f32; GROUP] {
    std::array::from_fn(|i| i as f32 + 0.3)
}

#[test]
fn every_code_in_every_place_has_its_value_by_every_look_up() {
    let other: [f32; 16] = std::array::from_fn(|i| i as f32 / 3.0 - 2.1);
    for (code, first, only_bytes) in
        [CODE, other].into_iter().flat_map(|code| (0..32).map(move |i| (code, i / 2, i % 2 == 1)))
    {
        let at = |i: usize| (first + i) % 16;
        let codes = std::array::from_fn(|i| (at(2 * i) << 4 | at(2 * i + 1)) as u8);
        let mut group = Group { codes, scale: 1.5, values: [0.0; GROUP], sums: [0.0; GROUP] };
        let done = match only_bytes {
            true => with_bytes(&code, &mut group).is_ok(),
            false => with_vectors(&code, &mut group).is_ok(),
        };
        if done {
            let x = x();
            let sum = |i: usize| x[i] * (code[at(i)] * -0.7) + x[i] * (code[at(i)] * 1.5);
            assert_eq!(group.values, std::array::from_fn(|i| code[at(i)] * 1.5), "from code {first} on");
            assert_eq!(group.sums, std::array::from_fn(sum), "from code {first} on");
        }
    }
}
