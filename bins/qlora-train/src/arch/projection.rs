//! The linear layers of a block.

/// A linear layer of a block. The order is that of the forward pass, everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Projection {
    Q,
    K,
    V,
    /// q, k and v in one
    Qkv,
    O,
    Gate,
    Up,
    /// gate and up in one
    GateUp,
    Down,
}

/// An input that projections share. Its number names the dropout mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Input {
    /// The norm before attention
    Attention,
    /// The heads' outputs
    Heads,
    /// The norm before the MLP
    Mlp,
    /// The MLP's activation
    Activated,
}

impl Input {
    pub const ALL: [Self; 4] = [Self::Attention, Self::Heads, Self::Mlp, Self::Activated];
}

impl Projection {
    /// Those of a family without fused projections.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];
    pub const ATTENTION: [Self; 4] = [Self::Q, Self::K, Self::V, Self::O];
    pub const MLP: [Self; 3] = [Self::Gate, Self::Up, Self::Down];

    /// A number that stays what it is whatever projections are added: values are drawn by it.
    pub fn number(self) -> usize {
        match self {
            Self::Q => 0,
            Self::K => 1,
            Self::V => 2,
            Self::O => 3,
            Self::Gate => 4,
            Self::Up => 5,
            Self::Down => 6,
            Self::Qkv => 7,
            Self::GateUp => 8,
        }
    }

    pub fn input(self) -> Input {
        match self {
            Self::Q | Self::K | Self::V | Self::Qkv => Input::Attention,
            Self::O => Input::Heads,
            Self::Gate | Self::Up | Self::GateUp => Input::Mlp,
            Self::Down => Input::Activated,
        }
    }
}
