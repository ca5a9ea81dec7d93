//! OLMo 3: OLMo 2 with a window on three layers of four, and rotary positions that are scaled on the others alone.
//!
//! A key that is absent has the default of transformers' `Olmo3Config`.

use super::{Family, LayerKeys, olmo2};

pub(super) static FAMILY: Family = Family {
    model_type: "olmo3",
    architecture: "Olmo3ForCausalLM",
    models: "OLMo 3",
    read: |keys| olmo2::read(keys, &FAMILY, 500_000.0),
    layer_keys: LayerKeys::ByWindow { full_each: 4, full_each_key: None, local_theta: None },
    rotates_a_part: false,
    beyond_positions: None,
    write: olmo2::FAMILY.write,
};
