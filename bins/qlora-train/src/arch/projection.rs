//! The linear layers of a block.

/// A linear layer of a block. The order is that of the forward pass, everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Projection {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
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

    /// The projections of this input, as they lie in one operand.
    pub fn projections(self) -> &'static [Projection] {
        match self {
            Self::Attention => &[Projection::Q, Projection::K, Projection::V],
            Self::Heads => &[Projection::O],
            Self::Mlp => &[Projection::Gate, Projection::Up],
            Self::Activated => &[Projection::Down],
        }
    }
}

impl Projection {
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];
    pub const ATTENTION: [Self; 4] = [Self::Q, Self::K, Self::V, Self::O];
    pub const MLP: [Self; 3] = [Self::Gate, Self::Up, Self::Down];

    pub fn input(self) -> Input {
        match self {
            Self::Q | Self::K | Self::V => Input::Attention,
            Self::O => Input::Heads,
            Self::Gate | Self::Up => Input::Mlp,
            Self::Down => Input::Activated,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_projection_is_of_one_input() {
        let listed: Vec<Projection> = Input::ALL.iter().flat_map(|input| input.projections()).copied().collect();
        assert_eq!(listed, Projection::ALL);
        for projection in Projection::ALL {
            assert!(projection.input().projections().contains(&projection));
        }
    }
}
