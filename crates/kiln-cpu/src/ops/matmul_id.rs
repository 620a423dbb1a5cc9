//! Expert-routed matrix products: slots are sorted by expert into groups, and each group is a product
//! of its expert's matrix, by the route of that many columns.

use super::matmul::{
    OutputRows, Product, Route, RowRange, pack_piece, packed_layout, rows_per_task, select,
};
use crate::exec::{Lowering, Tasks, Workspace};
use crate::isa::{LANES, TILE};
use crate::matmul::Weights;
use crate::matmul::mat_mat::COLUMN_STEP;
use crate::view::View;
use kiln_core::ops::MatmulId;

/// Most columns of a group.
const GROUP_COLUMNS: usize = 48;

/// As [`GROUP_COLUMNS`], where a unit multiplies tiles: weights are unpacked once for a group.
const TILED_GROUP_COLUMNS: usize = 256;

/// Rows of a task there, where there is more than one token.
const TILED_ROWS: usize = 128;

/// Slots of one expert.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Group {
    expert: u32,
    /// Its first slot in the sorted list.
    first: u32,
    len: u32,
    /// Where its packed input starts, in units of [`Routing::unit`].
    packed: u32,
}

/// The parts of the workspace: number of groups, groups, sorted slots, packed inputs.
#[derive(Clone)]
struct Routing {
    workspace: Workspace,
    slots: usize,
    /// Most groups there can be.
    groups: usize,
    /// Most columns of a group.
    most: usize,
    /// Columns that are padded to.
    step: usize,
    /// Bytes that so many columns need at most.
    unit: usize,
}

impl Routing {
    fn groups_at(&self) -> usize {
        size_of::<u64>()
    }

    fn slots_at(&self) -> usize {
        self.groups_at() + self.groups * size_of::<Group>()
    }

    fn packed_at(&self) -> usize {
        (self.slots_at() + self.slots * size_of::<u32>()).next_multiple_of(64)
    }

    fn bytes(&self) -> usize {
        self.packed_at() + (self.slots / self.step + self.groups) * self.unit
    }

    fn packed(&self, group: Group) -> *mut u8 {
        let offset = self.packed_at() + group.packed as usize * self.unit;
        self.workspace.start().wrapping_add(offset)
    }

    /// # Safety
    /// The table is built, and nobody writes it meanwhile.
    unsafe fn group(&self, index: usize) -> Option<Group> {
        let start = self.workspace.start();
        // SAFETY: the parts are inside the workspace.
        unsafe {
            let count = start.cast::<u32>().read() as usize;
            (index < count)
                .then(|| start.add(self.groups_at()).cast::<Group>().add(index).read_unaligned())
        }
    }

    fn slot_list(&self, group: Group) -> *const u32 {
        let list = self.workspace.start().wrapping_add(self.slots_at()).cast::<u32>();
        list.wrapping_add(group.first as usize).cast_const()
    }

    /// Sorts the slots by expert, stably, and cuts the runs into groups.
    ///
    /// # Safety
    /// The caller has the workspace alone; `ids` is not written meanwhile.
    unsafe fn build(&self, ids: &View, experts: usize) {
        let start = self.workspace.start();
        // SAFETY: the parts are inside the workspace and disjoint.
        let (count, groups, list) = unsafe {
            (
                &mut *start.cast::<u32>(),
                start.add(self.groups_at()).cast::<Group>(),
                std::slice::from_raw_parts_mut(
                    start.add(self.slots_at()).cast::<u32>(),
                    self.slots,
                ),
            )
        };
        let top_k = ids.last();
        // SAFETY: `[m, top_k]` u32 by the contract.
        let id = |slot: u32| unsafe {
            ids.row::<u32, 1>([slot as usize / top_k])[slot as usize % top_k]
        };
        list.iter_mut().zip(0..).for_each(|(entry, slot)| *entry = slot);
        list.sort_unstable_by_key(|&slot| (id(slot), slot));
        *count = 0;
        let (mut first, mut packed) = (0, 0);
        while first < list.len() {
            let expert = id(list[first]);
            let run = list[first..].iter().take(self.most + 2);
            let run = run.take_while(|&&slot| id(slot) == expert).count();
            // A slot that is cut off alone would take the route of one column.
            let len = if run == self.most + 1 { self.most - 1 } else { run.min(self.most) };
            if (expert as usize) < experts {
                let group = Group { expert, first: first as u32, len: len as u32, packed };
                packed += len.div_ceil(self.step) as u32;
                // SAFETY: there are at most `groups` groups.
                unsafe { groups.add(*count as usize).write_unaligned(group) };
                *count += 1;
            }
            first += len;
        }
    }
}

/// `output[m, s] = weight[ids[m, s]] * input[m, s]`
pub(super) fn matmul_id(op: &MatmulId<View>, lowering: &mut Lowering) {
    let MatmulId { input, weight, ids, output, precision } = *op;
    let experts = weight.extent(0);
    let slots = output.extent(0) * output.extent(1);
    let matrix = Weights::new(&weight, 0);
    let isa = lowering.isa;
    let route_of = move |len| select(isa, len, &[matrix], precision);
    let layout_of = move |len| packed_layout(isa, route_of(len), &matrix, len);
    let tiled = route_of(2) == Route::Bf16Tiles;
    let (most, step) =
        if tiled { (TILED_GROUP_COLUMNS, TILE) } else { (GROUP_COLUMNS, COLUMN_STEP) };
    let unit = (1..=step).map(|len| layout_of(len).bytes()).max().unwrap_or(0);
    let groups = slots.min(experts) + slots / most;
    let sizes = Routing { workspace: Workspace::default(), slots, groups, most, step, unit };
    let workspace = lowering.workspace(sizes.bytes());
    let routing = Routing { workspace, ..sizes };

    let table = routing.clone();
    lowering.tasks(Tasks::new(1, move |_, _| {
        // SAFETY: this phase has the workspace alone; hazards keep writers of the ids out. Rows of
        // ids that no expert has are written by this task only.
        unsafe {
            table.build(&ids, experts);
            for row in 0..output.extent(0) {
                for (slot, &id) in ids.row::<u32, 1>([row]).iter().enumerate() {
                    if id as usize >= experts {
                        output.row_mut::<f32, 2>([row, slot]).fill(f32::NAN);
                    }
                }
            }
        }
    }));
    lowering.barrier();

    let table = routing.clone();
    lowering.tasks(Tasks::new(groups, move |index, scratch| {
        // SAFETY: the table was built in the phase before.
        let Some(group) = (unsafe { table.group(index) }) else { return };
        let layout = layout_of(group.len as usize);
        let [x] = scratch.floats([layout.depth]);
        for index in 0..layout.pieces() {
            // SAFETY: the group's part of the workspace is this task's alone. The list has `len` slots;
            // hazards keep writers of the input out.
            unsafe {
                pack_piece(
                    isa,
                    layout,
                    (table.packed(group), index),
                    x,
                    #[inline(always)]
                    |of_group, start, x| {
                        let valid = matrix.k.saturating_sub(start).min(x.len());
                        x[valid..].fill(0.0);
                        if of_group >= group.len as usize {
                            return x.fill(0.0);
                        }
                        let slot = *table.slot_list(group).add(of_group) as usize;
                        let (row, of_row) = (slot / ids.last(), slot % ids.last());
                        if input.rank() == 2 {
                            input.load([row], start, &mut x[..valid]);
                        } else {
                            input.load([row, of_row], start, &mut x[..valid]);
                        }
                    },
                );
            }
        }
    }));
    lowering.barrier();

    // The experts of one token have a slot each: tasks are as large as one column wants them.
    let rows = if tiled && output.extent(0) > 1 {
        TILED_ROWS
    } else {
        rows_per_task(isa, route_of(1), &matrix).max(2 * LANES)
    };
    let blocks = matrix.n.div_ceil(rows);
    lowering.tasks(Tasks::new(groups * blocks, move |task, scratch| {
        let (index, block) = (task / blocks, task % blocks);
        // SAFETY: the table was built two phases before.
        let Some(group) = (unsafe { routing.group(index) }) else { return };
        let product = Product {
            weights: Weights::new(&weight, group.expert as usize),
            gate: None,
            output: OutputRows::Slots { view: output, slots: routing.slot_list(group) },
            m: group.len as usize,
        };
        let packed = routing.packed(group).cast_const();
        let (route, layout) = (route_of(product.m), layout_of(product.m));
        // Tiles take all rows of a task at once, other routes as many as they want.
        let step =
            if route == Route::Bf16Tiles { rows } else { rows_per_task(isa, route, &matrix) };
        let end = matrix.n.min((block + 1) * rows);
        for first in (block * rows..end).step_by(step) {
            let rows = first..end.min(first + step);
            RowRange { product: &product, then: &[], rows, layout, packed }
                .run(isa, route, scratch);
        }
    }));
}
