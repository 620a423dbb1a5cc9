//! Lowering of a plan to launches: kernels, arguments and workspace.

use crate::kernels::Unit;
use crate::ops;
use crate::runtime::context::Caps;
use crate::runtime::graph::{Launch, Launches};
use crate::view::View;
use kiln_core::KernelArgs;
use kiln_core::ops::{Op, Role};
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

/// What a piece of the workspace was made from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Made {
    pub(crate) kind: &'static str,
    pub(crate) from: View,
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
    largest: u64,
}

/// How much workspace a plan needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WorkspaceSize(u64);

/// Least size of a ring that starts again: large enough for the pieces of several steps.
const RING: u64 = 512 << 20;

impl WorkspaceSize {
    pub(crate) fn bytes(self) -> u64 {
        self.0
    }
}

/// The plan while it is lowered.
pub(crate) struct Lowering {
    pub(crate) caps: Caps,
    workspace: Workspace,
    step: usize,
    current: Launches,
    done: Vec<Launches>,
}

impl Lowering {
    /// Lowers steps; addresses of the workspace count from `base`.
    pub(crate) fn run(
        caps: Caps,
        steps: &[(Op<View>, Vec<usize>)],
        base: u64,
        size: WorkspaceSize,
    ) -> (Vec<Launches>, WorkspaceSize) {
        let workspace =
            Workspace { base, limit: size.0, next: 0, pieces: Vec::new(), total: 0, largest: 0 };
        let current = Launches::default();
        let mut lowering = Self { caps, workspace, step: 0, current, done: Vec::new() };
        for (step, (op, depends_on)) in steps.iter().enumerate() {
            lowering.step = step;
            lowering.current = Launches { launches: Vec::new(), depends_on: depends_on.clone() };
            ops::lower(op, &mut lowering);
            lowering.forget_written(op);
            let mut launches = std::mem::take(&mut lowering.current);
            launches.depends_on.sort_unstable();
            launches.depends_on.dedup();
            launches.depends_on.retain(|before| *before != step);
            lowering.done.push(launches);
        }
        let Workspace { total, largest, .. } = lowering.workspace;
        let size = WorkspaceSize(total.min((2 * largest).max(RING)));
        (lowering.done, size)
    }

    /// A workspace without a limit, to measure.
    pub(crate) fn unlimited() -> WorkspaceSize {
        WorkspaceSize(u64::MAX)
    }

    /// Appends a launch; those of a step run in order.
    pub(crate) fn launch(&mut self, kernel: Kernel, args: &impl KernelArgs) {
        self.launch_with(kernel, vec![bytemuck::bytes_of(args).to_vec()]);
    }

    /// As [`Lowering::launch`], with the bytes of every parameter.
    pub(crate) fn launch_with(&mut self, kernel: Kernel, params: Vec<Vec<u8>>) {
        let Kernel { unit, name, grid, block, shared } = kernel;
        let grid = grid.map(|extent| extent.min(u64::from(i32::MAX as u32)) as u32);
        self.current.launches.push(Launch { unit, name, grid, block, shared, params });
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
            return self.workspace.base + piece.range.start;
        }
        let address = self.allocate(bytes, Some(made));
        make(self, address);
        address
    }

    fn allocate(&mut self, bytes: u64, made: Option<Made>) -> u64 {
        let workspace = &mut self.workspace;
        let bytes = bytes.max(1).next_multiple_of(256);
        if workspace.next.checked_add(bytes).is_none_or(|end| end > workspace.limit) {
            workspace.next = 0;
        }
        let range = workspace.next..workspace.next + bytes;
        workspace.next = range.end;
        workspace.total += bytes;
        workspace.largest = workspace.largest.max(bytes);
        let depends_on = &mut self.current.depends_on;
        workspace.pieces.retain(|piece| {
            let free = piece.range.start >= range.end || range.start >= piece.range.end;
            if !free {
                depends_on.extend(&piece.users);
            }
            free
        });
        let start = workspace.base + range.start;
        workspace.pieces.push(Piece { range, users: vec![self.step], made });
        start
    }

    /// What was made of memory that a step writes is stale.
    fn forget_written(&mut self, op: &Op<View>) {
        let mut written = Vec::new();
        let _: Result<Op<()>, std::convert::Infallible> = op.try_map(|role: Role, view| {
            if role.access.writes() {
                written.push(view.address..view.address + view.span());
            }
            Ok(())
        });
        for piece in &mut self.workspace.pieces {
            let stale = piece.made.as_ref().is_some_and(|made| {
                let from = made.from.address..made.from.address + made.from.span();
                written.iter().any(|w| w.start < from.end && from.start < w.end)
            });
            if stale {
                piece.made = None;
            }
        }
    }
}
