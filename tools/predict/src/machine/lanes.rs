//! Values of a warp's registers, where they are known.

/// Threads of a warp.
pub const LANES: usize = 32;

/// The 32 bits of a register in each lane.
pub type Lanes = [u32; LANES];

/// The value of a register in each lane.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    pub lanes: Lanes,
    /// True if it depends on an argument of the kernel, for which a large round number stands in: good for the pattern
    /// of addresses, and no reason to take one branch or the other.
    pub supposed: bool,
}

/// A register's value where it follows from the launch; none where it comes from memory.
pub type Value = Option<Box<Known>>;

/// A bit for each lane, where it is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mask {
    pub bits: u32,
    /// True if it depends on stand-ins ([`Known::supposed`]).
    pub supposed: bool,
}

pub type Predicate = Option<Mask>;

pub fn uniform(value: u32) -> Value {
    Some(Box::new(Known { lanes: [value; LANES], supposed: false }))
}

pub fn supposed(value: u32) -> Value {
    Some(Box::new(Known { lanes: [value; LANES], supposed: true }))
}

pub fn of_lanes(of: impl Fn(u32) -> u32) -> Value {
    Some(Box::new(Known { lanes: std::array::from_fn(|lane| of(lane as u32)), supposed: false }))
}

pub fn map(a: &Value, of: impl Fn(u32) -> u32) -> Value {
    a.as_ref().map(|a| Box::new(Known { lanes: a.lanes.map(of), supposed: a.supposed }))
}

pub fn zip(a: &Value, b: &Value, of: impl Fn(u32, u32) -> u32) -> Value {
    let (a, b) = (a.as_ref()?, b.as_ref()?);
    let lanes = std::array::from_fn(|lane| of(a.lanes[lane], b.lanes[lane]));
    Some(Box::new(Known { lanes, supposed: a.supposed || b.supposed }))
}

pub fn zip3(a: &Value, b: &Value, c: &Value, of: impl Fn(u32, u32, u32) -> u32) -> Value {
    let (a, b, c) = (a.as_ref()?, b.as_ref()?, c.as_ref()?);
    let lanes = std::array::from_fn(|lane| of(a.lanes[lane], b.lanes[lane], c.lanes[lane]));
    Some(Box::new(Known { lanes, supposed: a.supposed || b.supposed || c.supposed }))
}

pub fn compare(a: &Value, b: &Value, of: impl Fn(u32, u32) -> bool) -> Predicate {
    let (a, b) = (a.as_ref()?, b.as_ref()?);
    let bits = (0..LANES).fold(0, |mask, lane| mask | u32::from(of(a.lanes[lane], b.lanes[lane])) << lane);
    Some(Mask { bits, supposed: a.supposed || b.supposed })
}

/// `a` where the predicate holds, `b` elsewhere.
pub fn select(predicate: Predicate, a: &Value, b: &Value) -> Value {
    let mask = predicate?;
    let chosen = match mask.bits {
        u32::MAX => a.clone()?,
        0 => b.clone()?,
        bits => {
            let (a, b) = (a.as_ref()?, b.as_ref()?);
            let lane = |lane: usize| if bits >> lane & 1 == 1 { a.lanes[lane] } else { b.lanes[lane] };
            Box::new(Known { lanes: std::array::from_fn(lane), supposed: a.supposed || b.supposed })
        }
    };
    Some(Box::new(Known { supposed: chosen.supposed || mask.supposed, ..*chosen }))
}
