//! The fused linear layer: `Y = X · deq(W)ᵀ + bf16(scale · X · Aᵀ) · Bᵀ (+ bias)`, f32 sums, Y rounded once.

use super::error::Operation;
use super::{Result, Stream, View, ViewMut, nf4, sys};
use half::bf16;

/// The frozen weight of a segment, `[n, k]`.
#[derive(Clone, Copy, Debug)]
pub enum Weight<'a> {
    Nf4(nf4::Weight<'a>),
    /// `[n * k]`, row-major
    Dense(View<'a, bf16>),
}

/// A LoRA pair of one segment.
#[derive(Clone, Copy, Debug)]
pub struct Lora<'a> {
    /// 1 to 256
    pub r: usize,
    /// alpha / r, or alpha / √r
    pub scale: f32,
    /// `[r, k]`
    pub a: View<'a, bf16>,
    /// `[n, r]`
    pub b: View<'a, bf16>,
}

/// One row segment of an operand (q, k or v; gate or up), with its own output.
#[derive(Debug)]
pub struct Segment<'a> {
    /// N, out features
    pub n: usize,
    pub weight: Weight<'a>,
    pub lora: Option<Lora<'a>>,
    /// `[n]`
    pub bias: Option<View<'a, bf16>>,
    /// `[m, ldy]` without what follows the last row's n columns: at least `(m - 1) * ldy + n` elements
    pub y: ViewMut<'a, bf16>,
    /// Elements from row to row of y, at least n.
    pub ldy: usize,
}

/// The input of all segments.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// M, tokens
    pub m: usize,
    /// K, in features
    pub k: usize,
    /// At least `(m - 1) * ldx + k` elements
    pub x: View<'a, bf16>,
    /// Elements from row to row of x, at least k.
    pub ldx: usize,
    /// `[m, lora_columns]` of [`lora_down`], or none: computed inside, in the workspace.
    pub s: Option<View<'a, bf16>>,
}

/// The kernel that a call takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    TensorCore,
    /// M ≤ 16
    SmallM,
    /// K or ldx off the tile, or a block size other than 64: slow
    Generic,
}

/// Columns of S: every segment's rank, rounded up to 8.
pub fn lora_columns(segments: &[Segment<'_>]) -> usize {
    segments.iter().filter_map(|segment| segment.lora.as_ref()).map(|lora| lora.r.next_multiple_of(8)).sum()
}

/// Elements of workspace that [`forward`] needs.
pub fn workspace_len(input: &Input<'_>, segments: &[Segment<'_>]) -> usize {
    if input.s.is_some() { 0 } else { input.m * lora_columns(segments) }
}

/// The kernel that [`forward`] will take.
pub fn path(input: &Input<'_>, segments: &mut [Segment<'_>]) -> Result<Path> {
    let call = Call::new("linear_path", input, segments)?;
    // SAFETY: reads the structs only, which `call` holds.
    match unsafe { sys::qk_linear_path(&call.linear()) } {
        0 => Ok(Path::TensorCore),
        1 => Ok(Path::SmallM),
        2 => Ok(Path::Generic),
        code => {
            Err(call.operation.status(code).err().unwrap_or_else(|| call.operation.argument("unknown path".into())))
        }
    }
}

/// `s` `[m, lora_columns]` = bf16(scale · X · Aᵀ) of every segment; padding columns become zero.
pub fn lora_down(input: &Input<'_>, segments: &mut [Segment<'_>], s: ViewMut<'_, bf16>, stream: Stream) -> Result<()> {
    let columns = lora_columns(segments);
    let call = Call::new("lora_down", &Input { s: None, ..*input }, segments)?;
    call.operation.length("s", s.len(), input.m * columns)?;
    // SAFETY: `Call::new` checked every length against the shapes, and the line above that of `s`.
    call.operation.status(unsafe { sys::qk_lora_down(&call.linear(), s.address().cast(), stream.0) })
}

/// Writes every segment's y. All weights are NF4, or all dense. `workspace` has at least [`workspace_len`] elements.
pub fn forward(
    input: &Input<'_>,
    segments: &mut [Segment<'_>],
    workspace: ViewMut<'_, bf16>,
    stream: Stream,
) -> Result<()> {
    let needed = workspace_len(input, segments);
    let dense = segments.iter().filter(|segment| matches!(segment.weight, Weight::Dense(_))).count();
    let call = Call::new("linear_forward", input, segments)?;
    call.operation.check(dense == 0 || dense == call.segments.len(), || "NF4 and dense segments do not mix".into())?;
    call.operation.check(workspace.len() >= needed, || {
        format!("the workspace has {} elements, expected at least {needed}", workspace.len())
    })?;
    let function = if dense == 0 { sys::qk_linear_forward } else { sys::qk_linear_forward_dense };
    let bytes = workspace.len() * size_of::<bf16>();
    // SAFETY: `Call::new` checked every length against the shapes; the workspace's is passed on and was checked too.
    call.operation.status(unsafe { function(&call.linear(), workspace.address().cast(), bytes, stream.0) })
}

/// The structs of one call; the C side reads them before it returns.
struct Call {
    operation: Operation,
    input: sys::qk_linear,
    segments: Vec<sys::qk_segment>,
    #[expect(clippy::vec_box, reason = "the segments point to them, so that they must not move")]
    _nf4: Vec<Box<sys::qk_nf4>>,
    #[expect(clippy::vec_box, reason = "as above")]
    _lora: Vec<Box<sys::qk_lora>>,
}

impl Call {
    /// The structs, with every length checked. Outputs are borrowed mutably by the caller for the call's length.
    fn new(name: &'static str, input: &Input<'_>, segments: &mut [Segment<'_>]) -> Result<Self> {
        let widths: Vec<String> = segments.iter().map(|segment| segment.n.to_string()).collect();
        let operation = Operation { name, shape: format!("M {}, K {}, N {}", input.m, input.k, widths.join(" + ")) };
        operation.check((1..=sys::QK_MAX_SEGMENTS as usize).contains(&segments.len()), || {
            format!("{} segments, expected 1 to {}", segments.len(), sys::QK_MAX_SEGMENTS)
        })?;
        rows(&operation, "x", input.x.len(), input.m, input.k, input.ldx)?;
        if let Some(s) = &input.s {
            operation.length("s", s.len(), input.m * lora_columns(segments))?;
        }
        let linear = sys::qk_linear {
            struct_size: size_of::<sys::qk_linear>() as u32,
            num_segments: segments.len() as u32,
            m: operation.dimension("M", input.m)?,
            k: operation.dimension("K", input.k)?,
            x: input.x.address().cast(),
            ldx: operation.dimension("ldx", input.ldx)?,
            segments: std::ptr::null(),
            s: input.s.map_or(std::ptr::null(), |s| s.address().cast()),
        };
        let mut call = Self { operation, input: linear, segments: Vec::new(), _nf4: Vec::new(), _lora: Vec::new() };
        for segment in segments {
            call.push(input, segment)?;
        }
        Ok(call)
    }

    fn push(&mut self, input: &Input<'_>, segment: &Segment<'_>) -> Result<()> {
        let (operation, n, k) = (&self.operation, segment.n, input.k);
        let size = |rows: usize, columns: usize| {
            rows.checked_mul(columns).ok_or_else(|| operation.argument("too many elements".into()))
        };
        rows(operation, "y", segment.y.len(), input.m, n, segment.ldy)?;
        let mut description = sys::qk_segment {
            struct_size: size_of::<sys::qk_segment>() as u32,
            reserved: 0,
            n: operation.dimension("N", n)?,
            nf4: std::ptr::null(),
            dense: std::ptr::null(),
            lora: std::ptr::null(),
            bias: std::ptr::null(),
            y: segment.y.address().cast(),
            ldy: operation.dimension("ldy", segment.ldy)?,
        };
        match &segment.weight {
            Weight::Nf4(weight) => {
                operation.check(weight.n == n && weight.k == k, || {
                    format!("the weight is [{}, {}], expected [{n}, {k}]", weight.n, weight.k)
                })?;
                self._nf4.push(Box::new(weight.describe(operation)?));
                description.nf4 = self._nf4.last().map_or(std::ptr::null(), |weight| &raw const **weight);
            }
            Weight::Dense(weight) => {
                operation.length("the weight", weight.len(), size(n, k)?)?;
                description.dense = weight.address().cast();
            }
        }
        if let Some(lora) = &segment.lora {
            operation.check((1..=sys::QK_MAX_R as usize).contains(&lora.r), || {
                format!("the LoRA rank is {}, expected 1 to {}", lora.r, sys::QK_MAX_R)
            })?;
            operation.length("A", lora.a.len(), size(lora.r, k)?)?;
            operation.length("B", lora.b.len(), size(n, lora.r)?)?;
            self._lora.push(Box::new(sys::qk_lora {
                struct_size: size_of::<sys::qk_lora>() as u32,
                r: lora.r as u32,
                scale: lora.scale,
                num_adapters: 1,
                a: lora.a.address().cast(),
                b: lora.b.address().cast(),
                adapter_index: std::ptr::null(),
            }));
            description.lora = self._lora.last().map_or(std::ptr::null(), |lora| &raw const **lora);
        }
        if let Some(bias) = &segment.bias {
            operation.length("bias", bias.len(), n)?;
            description.bias = bias.address().cast();
        }
        self.segments.push(description);
        Ok(())
    }

    fn linear(&self) -> sys::qk_linear {
        sys::qk_linear { segments: self.segments.as_ptr(), ..self.input }
    }
}

/// A strided matrix `[m, columns]` in `len` elements.
fn rows(operation: &Operation, what: &str, len: usize, m: usize, columns: usize, stride: usize) -> Result<()> {
    operation.check(stride >= columns, || format!("{what} has a stride of {stride}, expected at least {columns}"))?;
    let needed = match m {
        0 => Some(0),
        _ => (m - 1).checked_mul(stride).and_then(|last| last.checked_add(columns)),
    };
    operation.check(needed.is_some_and(|needed| len >= needed), || {
        format!("{what} has {len} elements, expected at least {m} rows of {columns}, {stride} apart")
    })
}
