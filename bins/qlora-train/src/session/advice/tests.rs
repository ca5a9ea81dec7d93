use super::*;
use crate::arch::{Arch, Projection};
use crate::backend::Quantization;
use crate::base::synthetic::tiny_arch;
use crate::config::{HeadResidency, StateResidency, TokenTile, WeightResidency};
use crate::files::tensor::StoredType;
use crate::lora::LoraSpec;
use proptest::prelude::*;

/// Pieces that few states come in take more of the device than these.
#[test]
fn few_states_on_the_device_leave_room_for_longer_rows() {
    let device = Device::unopened(0);
    let arch = Arch { num_layers: 9, head_dim: 64, ..tiny_arch() };
    let lora = LoraSpec::uniform(&arch, &[Projection::Q, Projection::K], 1, 1.0, 0.0);
    let mut spec = ModelSpec { trainable: true, ..ModelSpec::new(lora, arch, Quantization::NF4, 100) };
    let stored = |_: &str| TensorStorage { dtype: StoredType::Bf16, resident_as: None };
    let budget = |limit| Budget { limit, in_use: 0, in_use_name: "", read_bytes: 0, host_limit: u64::MAX, sharers: 1 };
    let levers = |states| {
        let (checkpointing, weights) = (Checkpointing::On, WeightResidency::Resident);
        Levers { checkpointing, weights, head: HeadResidency::Resident, states, token_tile: TokenTile::Off }
    };
    let waiting = choose(&device, &mut spec, levers(StateResidency::Host), &stored, budget(0)).unwrap();
    let limit = budget(waiting.peak_bytes());
    let longest = |states| {
        let (device, spec, levers, stored) = (&device, &spec, levers(states), &stored);
        longest_row(&Asked { device, spec, levers, stored, budget: limit, rows: 1 }).unwrap()
    };
    let [host, resident, auto] = [StateResidency::Host, StateResidency::Resident, StateResidency::Auto].map(longest);
    assert!(host < resident && host < auto && auto < 256, "{host} {resident} {auto}");
}

/// The answer, and how often room was asked for.
fn search(found: usize, end: usize, room: impl Fn(usize) -> i128) -> (usize, usize) {
    let mut tries = 0;
    let mut counted = |length| {
        tries += 1;
        Ok(room(length))
    };
    (last_with_room(found, end, &mut counted).unwrap(), tries)
}

#[test]
fn a_line_is_followed_to_its_end() {
    let line = |length: usize| 44_400_000_000 - 241_731 * length as i128;
    let (longest, tries) = search(0, 1 << 20, line);
    assert_eq!(longest, 44_400_000_000 / 241_731);
    assert!(tries <= 6, "{tries}");
    assert_eq!(search(longest, 1 << 20, line), (longest, 1), "nothing beyond it fits");
    assert_eq!(search(0, 100, line), (100, 2), "all fit");
    assert_eq!(search(0, 100, |_| -1), (0, 1), "none fits");
    assert_eq!(search(0, 0, line), (0, 0), "there is no length");
}

proptest! {
    #[test]
    fn the_last_with_room_is_found(
        steps in proptest::collection::vec(0i128..1_000_000, 1..300),
        start in 0i128..150_000_000,
    ) {
        let falling = steps.iter().scan(start, |room, step| {
            *room -= step;
            Some(*room)
        });
        let rooms: Vec<i128> = falling.collect();
        let (found, tries) = search(0, rooms.len(), |length| rooms[length - 1]);
        prop_assert_eq!(found, rooms.iter().take_while(|&&room| room >= 0).count());
        // Halving alone takes 9, and it is every third.
        prop_assert!(tries <= 3 * 9 + 2, "{} tries for {} lengths", tries, rooms.len());
    }
}
