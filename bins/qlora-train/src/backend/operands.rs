//! Types of a backend that operations work on, and the shapes that they have.

use crate::error::{Error, Result};
use std::ops::Range;

/// The types that operations work on.
pub trait Operands {
    /// Activations and their gradients.
    type Buffer: BufferShape;
    /// A frozen linear weight.
    type Weight;
    /// The embedding or the output layer, `[vocab, hidden]`.
    type Table: TableShape + MaybeTrained<Self::Param>;
    /// A norm's weight or a bias.
    type Vector: MaybeTrained<Self::Param>;
    /// A trainable tensor with its gradient and optimizer states.
    type Param;
    /// A buffer that waits for the backward pass, in host memory where the device has memory of its own.
    type Offloaded;
}

/// The rows of a buffer: `[tokens, width]`, row-major, `stride` apart.
pub trait BufferShape {
    /// The tokens of the batch that it has rows for.
    fn tokens(&self) -> Range<usize>;
    fn width(&self) -> usize;
    /// Elements from one row to the next: the width, and room behind it where there is any.
    fn stride(&self) -> usize {
        self.width()
    }
    /// Makes its rows those of as many tokens from `first` on: a tile moves along the batch.
    fn move_to(&mut self, first: usize);

    /// The range of these tokens' elements.
    fn elements(&self, tokens: &Range<usize>) -> Result<Range<usize>> {
        let (own, stride) = (self.tokens(), self.stride());
        if tokens.start < own.start || tokens.end > own.end {
            return Err(Error::Failed(format!(
                "a buffer with rows for tokens {} to {} was given tokens {} to {}",
                own.start, own.end, tokens.start, tokens.end
            )));
        }
        Ok((tokens.start - own.start) * stride..(tokens.end - own.start) * stride)
    }
}

/// An operand that is frozen or trained.
pub trait MaybeTrained<P> {
    /// The trainable tensor that it is; none where it is frozen.
    fn param(&self) -> Option<&P>;
    fn param_mut(&mut self) -> Option<&mut P>;
}

/// The shape of an embedding or output layer.
pub trait TableShape {
    fn vocab(&self) -> usize;
    /// Rows that are trained: none, all, or those of some tokens.
    fn trained_rows(&self) -> usize;
}
