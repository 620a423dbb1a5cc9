//! Lowering of a plan to launches: kernels, arguments and workspace.

use crate::kernels::Unit;
use crate::ops;
use crate::runtime::context::Caps;
use crate::runtime::graph::{Ahead, Launch, Launches, Param};
use crate::view::View;
use kiln_core::KernelArgs;
use kiln_core::ops::{Access, Op, Precision, Role};
use std::collections::BTreeMap;
use std::ops::Range;

/// A kernel with its geometry.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kernel {
    pub(crate) unit: Unit,
    pub(crate) name: String,
    pub(crate) grid: [u64; 3],
    pub(crate) block: u32,
    pub(crate) shared: u32,
}

impl Kernel {
    /// A kernel on a grid of one axis.
    pub(crate) fn new(unit: Unit, name: impl Into<String>, blocks: u64, block: u32) -> Self {
        Self { unit, name: name.into(), grid: [blocks, 1, 1], block, shared: 0 }
    }

    pub(crate) fn grid(self, grid: [u64; 3]) -> Self {
        Self { grid, ..self }
    }

    pub(crate) fn shared(self, bytes: u64) -> Self {
        Self { shared: bytes as u32, ..self }
    }
}

fn with_params(kernel: Kernel, params: Vec<Param>) -> Launch {
    let Kernel { unit, name, grid, block, shared } = kernel;
    let grid = grid.map(|extent| extent.min(i32::MAX as u64) as u32);
    Launch { unit, name, grid, block, shared, params }
}

/// What a piece of the workspace was made from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Made {
    kind: &'static str,
    from: View,
    /// A second source.
    and: Option<View>,
    /// Numbers that what was made depends on.
    key: [u64; 2],
}

impl Made {
    pub(crate) fn new(kind: &'static str, from: View) -> Self {
        Self { kind, from, and: None, key: [0; 2] }
    }

    pub(crate) fn with(self, and: Option<View>, key: [u64; 2]) -> Self {
        Self { and, key, ..self }
    }
}

struct Piece {
    range: Range<u64>,
    /// Steps that write or read it.
    users: Vec<usize>,
    made: Option<Made>,
}

/// Memory for what passes between the launches of a step, and between steps that share it. A ring:
/// a step that overwrites a piece waits for the piece's users.
struct Workspace {
    base: u64,
    /// Where the ring starts again.
    limit: u64,
    next: u64,
    pieces: Vec<Piece>,
    total: u64,
    /// Bytes that the current step uses, and the most of any step.
    step: u64,
    largest_step: u64,
    /// Whether a piece found no room.
    full: bool,
}

fn overlaps(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// What an operation reads, or writes.
pub(crate) fn accessed(op: &Op<View>, how: fn(Access) -> bool) -> Vec<View> {
    let mut views = Vec::new();
    let _: Result<Op<()>, std::convert::Infallible> = op.try_map(|role: Role, view| {
        if how(role.access) {
            views.push(*view);
        }
        Ok(())
    });
    views
}

impl Workspace {
    fn count(&mut self, bytes: u64) {
        self.step += bytes;
        self.largest_step = self.largest_step.max(self.step);
    }

    /// The next room for a piece that holds nothing that `step` itself uses.
    fn place(&mut self, bytes: u64, step: usize) -> Range<u64> {
        let mut turns = 0;
        loop {
            if self.next.checked_add(bytes).is_none_or(|end| end > self.limit) {
                self.next = 0;
                turns += 1;
            }
            let range = self.next..self.next + bytes;
            let taken =
                |piece: &&Piece| overlaps(&piece.range, &range) && piece.users.contains(&step);
            match self.pieces.iter().find(taken) {
                Some(piece) if turns < 2 => self.next = piece.range.end,
                taken => {
                    self.full |= taken.is_some();
                    self.next = range.end;
                    return range;
                }
            }
        }
    }
}

/// How much workspace a plan needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WorkspaceSize(u64);

/// Least size of a ring that starts again: large enough for the pieces of several steps.
const RING: u64 = 512 << 20;
/// Times the largest step that a ring has room for.
const RING_STEPS: u64 = 4;

impl WorkspaceSize {
    pub(crate) fn bytes(self) -> u64 {
        self.0
    }
}

/// A lowered plan.
pub(crate) struct Lowered {
    pub(crate) steps: Vec<Launches>,
    /// Bytes of counters.
    pub(crate) counters: u64,
    /// A workspace in which pieces take the place of earlier ones.
    pub(crate) ring: WorkspaceSize,
    /// A workspace with a place of its own for each piece.
    pub(crate) total: WorkspaceSize,
    /// Whether all pieces found room.
    pub(crate) fits: bool,
}

/// How many steps behind a step are looked at for others that its kernel can do too.
pub(crate) const JOINED_WITHIN: usize = 4;

/// What a kernel has itself of what a step that joins it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Has {
    /// Nothing: both work side by side.
    Nothing,
    /// What its own step and the steps that have joined it make.
    Joined,
}

/// The plan while it is lowered.
pub(crate) struct Lowering<'a> {
    pub(crate) caps: Caps,
    steps: &'a [(Op<View>, Vec<usize>)],
    /// Steps whose work an earlier step does.
    joined: BTreeMap<usize, usize>,
    /// Where counters start, and how many bytes of them are taken.
    counters: Range<u64>,
    /// What fast products of the plan read.
    products: Vec<View>,
    workspace: Workspace,
    step: usize,
    current: Launches,
    done: Vec<Launches>,
}

impl<'a> Lowering<'a> {
    /// Lowers steps; addresses of the workspace and of the counters count from `base`.
    pub(crate) fn run(
        caps: Caps,
        steps: &'a [(Op<View>, Vec<usize>)],
        [base, counters]: [u64; 2],
        size: WorkspaceSize,
    ) -> Lowered {
        let workspace = Workspace {
            base,
            limit: size.0,
            next: 0,
            pieces: Vec::new(),
            total: 0,
            step: 0,
            largest_step: 0,
            full: false,
        };
        let current = Launches::default();
        let products = steps.iter().filter_map(|(op, _)| match op {
            Op::Matmul(op) => (op.precision == Precision::Fast).then_some(op.input),
            Op::GatedMatmul(op) => (op.precision == Precision::Fast).then_some(op.input),
            _ => None,
        });
        let products = products.collect();
        let mut lowering = Self {
            caps,
            steps,
            joined: BTreeMap::new(),
            counters: counters..counters,
            products,
            workspace,
            step: 0,
            current,
            done: Vec::new(),
        };
        for (step, (op, depends_on)) in steps.iter().enumerate() {
            lowering.step = step;
            lowering.workspace.step = 0;
            if let Some(leader) = lowering.joined.get(&step) {
                let depends_on = vec![*leader];
                lowering.done.push(Launches { depends_on, ..Launches::default() });
                continue;
            }
            lowering.current = Launches { depends_on: depends_on.clone(), ..Launches::default() };
            lowering.forget_written(op);
            ops::lower(op, &mut lowering);
            let mut launches = std::mem::take(&mut lowering.current);
            launches.depends_on.sort_unstable();
            launches.depends_on.dedup();
            launches.depends_on.retain(|before| *before != step);
            lowering.done.push(launches);
        }
        let Workspace { total, largest_step, full, .. } = lowering.workspace;
        Lowered {
            steps: lowering.done,
            counters: lowering.counters.end - lowering.counters.start,
            ring: WorkspaceSize(total.min((RING_STEPS * largest_step).max(RING))),
            total: WorkspaceSize(total),
            fits: !full,
        }
    }

    /// A workspace without a limit, to measure.
    pub(crate) fn unlimited() -> WorkspaceSize {
        WorkspaceSize(u64::MAX)
    }

    /// What `take` makes of later steps, at most `most`, becomes part of this step: of the next few
    /// those that need nothing from this one on, but for what `has` says that the kernel has itself.
    pub(crate) fn join<T>(
        &mut self,
        most: usize,
        has: Has,
        take: impl Fn(&Op<View>, &mut Self) -> Option<T>,
    ) -> Vec<T> {
        let mut taken = Vec::new();
        let steps = self.steps;
        for (step, (op, depends_on)) in steps.iter().enumerate().skip(self.step + 1) {
            if taken.len() == most || step > self.step + JOINED_WITHIN {
                break;
            }
            let free = depends_on.iter().all(|before| {
                let own = || *before == self.step || self.joined.get(before) == Some(&self.step);
                *before < self.step || has == Has::Joined && own()
            });
            if !free || self.joined.contains_key(&step) {
                continue;
            }
            let Some(part) = take(op, self) else { continue };
            taken.push(part);
            self.joined.insert(step, self.step);
            let earlier = depends_on.iter().filter(|before| **before < self.step);
            self.current.depends_on.extend(earlier);
            self.forget_written(op);
        }
        taken
    }

    /// Counters of this step alone, u32: zero before the first run, and left at zero by the kernel.
    pub(crate) fn counters(&mut self, count: u64) -> u64 {
        let address = self.counters.end;
        self.counters.end += count * 4;
        address
    }

    /// Appends a launch; those of a step run in order.
    pub(crate) fn launch(&mut self, kernel: Kernel, args: &impl KernelArgs) {
        self.launch_with(kernel, vec![Param::Bytes(bytemuck::bytes_of(args).to_vec())]);
    }

    /// As [`Lowering::launch`], with every parameter.
    pub(crate) fn launch_with(&mut self, kernel: Kernel, params: Vec<Param>) {
        self.current.launches.push(with_params(kernel, params));
    }

    /// Memory that this step alone uses, filled by a launch that needs nothing that the plan
    /// computes. The step's next launch waits for it.
    pub(crate) fn fill_ahead<A: KernelArgs>(
        &mut self,
        bytes: u64,
        fill: impl FnOnce(u64) -> (Kernel, A),
    ) -> u64 {
        let mut waits = std::mem::take(&mut self.current.depends_on);
        let kept = waits.clone();
        waits.clear();
        let address = self.workspace(bytes);
        waits.append(&mut self.current.depends_on);
        waits.retain(|before| *before != self.step);
        waits.sort_unstable();
        waits.dedup();
        self.current.depends_on = kept;
        let (kernel, args) = fill(address);
        let params = vec![Param::Bytes(bytemuck::bytes_of(&args).to_vec())];
        let before = self.current.launches.len();
        let launch = with_params(kernel, params);
        self.current.ahead.push(Ahead { launch, waits, before });
        address
    }

    /// Memory that this step alone uses.
    pub(crate) fn workspace(&mut self, bytes: u64) -> u64 {
        self.allocate(bytes, None)
    }

    /// Memory with what `make` makes, which later steps share until its source is written.
    pub(crate) fn shared(
        &mut self,
        made: Made,
        bytes: u64,
        make: impl FnOnce(&mut Self, u64),
    ) -> u64 {
        let step = self.step;
        let piece = self.workspace.pieces.iter_mut();
        if let Some(piece) = piece.into_iter().find(|piece| piece.made.as_ref() == Some(&made)) {
            self.current.depends_on.push(piece.users[0]);
            piece.users.push(step);
            let range = piece.range.clone();
            self.workspace.count(range.end - range.start);
            return self.workspace.base + range.start;
        }
        let address = self.allocate(bytes, Some(made));
        make(self, address);
        address
    }

    /// Memory that this step fills with what was made of its output, for later steps to share; 0
    /// where no fast product reads the output.
    pub(crate) fn provide(&mut self, made: Made, bytes: u64) -> u64 {
        if self.products.contains(&made.from) { self.allocate(bytes, Some(made)) } else { 0 }
    }

    fn allocate(&mut self, bytes: u64, made: Option<Made>) -> u64 {
        let step = self.step;
        let workspace = &mut self.workspace;
        let bytes = bytes.max(1).next_multiple_of(256);
        let range = workspace.place(bytes, step);
        workspace.total += bytes;
        workspace.count(bytes);
        let depends_on = &mut self.current.depends_on;
        workspace.pieces.retain(|piece| {
            let free = !overlaps(&piece.range, &range);
            if !free {
                depends_on.extend(&piece.users);
            }
            free
        });
        let start = workspace.base + range.start;
        workspace.pieces.push(Piece { range, users: vec![step], made });
        start
    }

    /// What was made of memory that a step writes is stale.
    fn forget_written(&mut self, op: &Op<View>) {
        let written = accessed(op, Access::writes);
        for piece in &mut self.workspace.pieces {
            let stale = piece.made.as_ref().is_some_and(|made| {
                let mut from = [Some(made.from), made.and].into_iter().flatten();
                from.any(|view| written.iter().any(|written| written.overlaps(&view)))
            });
            if stale {
                piece.made = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planes::Planes;
    use kiln_core::DType;
    use kiln_core::ops::{InputLayout, Matmul, RmsNorm, Scale};

    fn workspace(limit: u64) -> Workspace {
        Workspace {
            base: 0,
            limit,
            next: 0,
            pieces: Vec::new(),
            total: 0,
            step: 0,
            largest_step: 0,
            full: false,
        }
    }

    const HOPPER: Caps = Caps { compute: [9, 0], processors: 132, shared: 227 << 10 };
    const AMPERE: Caps = Caps { compute: [8, 0], processors: 108, shared: 163 << 10 };

    /// A view of a tensor of its own, at an address of its own.
    fn view(dtype: DType, shape: [usize; 2], base: u64) -> View {
        let device = kiln_reference::device();
        let tensor = device.tensor(dtype, shape).unwrap();
        View::new(base, 0, &tensor, None)
    }

    fn imported(dtype: DType, shape: [usize; 2], base: u64) -> View {
        let device = kiln_reference::device();
        let tensor = device.tensor(dtype, shape).unwrap();
        View::new(base, 0, &tensor, Planes::new(dtype, shape[0], shape[1]))
    }

    fn product(input: View, weight: View, output: View) -> Op<View> {
        let (input_layout, precision) = (InputLayout::RowMajor, Precision::Fast);
        Op::Matmul(Matmul { input, weight, output, input_layout, precision })
    }

    fn names(launches: &Launches) -> Vec<&str> {
        launches.launches.iter().map(|launch| launch.name.as_str()).collect()
    }

    #[test]
    fn steps_share_activations_until_they_change() {
        let x = view(DType::F32, [1, 256], 1 << 20);
        let weight = imported(DType::Q4K, [64, 256], 2 << 20);
        let outputs = [3, 4, 5].map(|at| view(DType::F32, [1, 64], at << 20));
        let scale = Op::Scale(Scale { input: x, output: x, factor: 2.0 });
        let steps = [
            (product(x, weight, outputs[0]), vec![]),
            (product(x, weight, outputs[1]), vec![]),
            (scale, vec![0, 1]),
            (product(x, weight, outputs[2]), vec![2]),
        ];
        let lowered = Lowering::run(AMPERE, &steps, [0; 2], Lowering::unlimited()).steps;
        assert_eq!(names(&lowered[0]), ["activations_q15", "mat_vec_1"]);
        assert_eq!(names(&lowered[1]), ["mat_vec_1"]);
        assert_eq!(lowered[1].depends_on, [0]);
        assert_eq!(names(&lowered[3]), ["activations_q15", "mat_vec_1"]);
    }

    #[test]
    fn a_norm_makes_the_activations_of_the_products_that_follow() {
        for (caps, rows) in [(AMPERE, 1), (HOPPER, 2)] {
            let x = view(DType::F32, [rows, 256], 1 << 20);
            let h = view(DType::F32, [rows, 256], 2 << 20);
            let y = view(DType::F32, [rows, 64], 3 << 20);
            let weight = imported(DType::Q8_0, [64, 256], 4 << 20);
            let norm = Op::RmsNorm(RmsNorm { input: x, weight: None, output: h, eps: 1e-6 });
            let steps = [(norm, vec![]), (product(h, weight, y), vec![0])];
            let lowered = Lowering::run(caps, &steps, [0; 2], Lowering::unlimited()).steps;
            assert_eq!(names(&lowered[0]), ["rms_norm_f32_1"]);
            assert_eq!(names(&lowered[1]), [format!("mat_vec_{rows}")]);
        }
    }

    #[test]
    fn products_of_one_input_are_one_launch() {
        let x = view(DType::F32, [1, 256], 1 << 20);
        let [q4, q6] = [DType::Q4K, DType::Q6K].map(|dtype| imported(dtype, [64, 256], 2 << 20));
        let outputs = [3, 4, 5, 6].map(|at| view(DType::F32, [1, 64], at << 20));
        let norm = Op::RmsNorm(RmsNorm { input: x, weight: None, output: x, eps: 1e-6 });
        let steps = [
            (norm, vec![]),
            (product(x, q4, outputs[0]), vec![0]),
            (product(x, q6, outputs[1]), vec![0]),
            (product(x, q4, outputs[2]), vec![0]),
            // It needs what the first of them makes.
            (product(x, q4, outputs[3]), vec![0, 1]),
        ];
        let lowered = Lowering::run(HOPPER, &steps, [0; 2], Lowering::unlimited()).steps;
        assert_eq!(names(&lowered[1]), ["stream_mat_vec"]);
        assert_eq!(names(&lowered[2]), ["stream_mat_vec"]);
        assert!(names(&lowered[3]).is_empty());
        assert_eq!(lowered[3].depends_on, [1]);
        assert_eq!(names(&lowered[4]), ["stream_mat_vec"]);
    }

    #[test]
    fn weights_at_rest_are_dequantised_ahead() {
        let x = view(DType::F32, [1024, 256], 1 << 24);
        let y = view(DType::F32, [1024, 64], 2 << 24);
        let weight = imported(DType::Q6K, [64, 256], 3 << 20);
        let steps = [(product(x, weight, y), vec![])];
        let lowered = &Lowering::run(HOPPER, &steps, [0; 2], Lowering::unlimited()).steps[0];
        assert_eq!(names(lowered), ["activations_bf16", "wgmma_matmul_128"]);
        let [Ahead { launch, waits, before }] = &lowered.ahead[..] else { panic!() };
        assert_eq!((launch.name.as_str(), &waits[..], *before), ("dequantize_bf16", &[][..], 1));
        let raw = view(DType::Q6K, [64, 256], 3 << 20);
        let steps = [(product(x, raw, y), vec![])];
        let lowered = &Lowering::run(HOPPER, &steps, [0; 2], Lowering::unlimited()).steps[0];
        let expected = ["pack_q6_k", "activations_bf16", "dequantize_bf16", "wgmma_matmul_128"];
        assert_eq!(names(lowered), expected);
        assert!(lowered.ahead.is_empty());
    }

    #[test]
    fn products_of_some_rows_dequantise_on_the_way() {
        let x = view(DType::F32, [32, 256], 1 << 20);
        let [q4, q6] = [DType::Q4K, DType::Q6K].map(|dtype| imported(dtype, [64, 256], 2 << 20));
        let outputs = [3, 4, 5].map(|at| view(DType::F32, [32, 64], at << 20));
        let steps = [
            (product(x, q4, outputs[0]), vec![]),
            (product(x, q6, outputs[1]), vec![]),
            (product(x, q4, outputs[2]), vec![]),
        ];
        let lowered = Lowering::run(HOPPER, &steps, [0; 2], Lowering::unlimited()).steps;
        assert_eq!(names(&lowered[0]), ["activations_bf16", "dequant_matmul_64"]);
        assert_eq!(names(&lowered[1]), ["dequant_matmul_64"]);
        assert!(names(&lowered[2]).is_empty());
        assert_eq!((&lowered[1].depends_on[..], &lowered[2].depends_on[..]), (&[0][..], &[0][..]));
    }

    #[test]
    fn a_step_never_overwrites_what_it_uses() {
        let mut workspace = workspace(1000);
        let mut add = |bytes, step| {
            let range = workspace.place(bytes, step);
            workspace.pieces.retain(|piece| !overlaps(&piece.range, &range));
            workspace.pieces.push(Piece { range: range.clone(), users: vec![step], made: None });
            (range, workspace.full)
        };
        assert_eq!(add(600, 0).0, 0..600);
        assert_eq!(add(300, 1).0, 600..900);
        // Starts again, behind nothing that it uses.
        assert_eq!(add(300, 1).0, 0..300);
        assert_eq!(add(300, 1).0, 300..600);
        assert_eq!(add(100, 1).0, 900..1000);
        let (_, full) = add(200, 1);
        assert!(full);
    }
}
