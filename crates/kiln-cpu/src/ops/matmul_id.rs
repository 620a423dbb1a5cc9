//! Expert-routed matrix products: slots are sorted by expert into groups of few columns, and each
//! group is a product of its expert's matrix.

use super::matmul::{OutputRows, Product, RowRange, packed_layout, rows_per_task, select};
use crate::exec::{Lowering, Tasks, Workspace};
use crate::isa::{Simd, with_simd};
use crate::matmul::Weights;
use crate::matmul::activations::{TileBytes, pack_column};
use crate::matmul::mat_vec::MAX_COLUMNS;
use crate::view::View;
use kiln_core::ops::MatmulId;

/// Slots of one expert.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Group {
    expert: u32,
    /// Its first slot in the sorted list.
    first: u32,
    len: u32,
}

/// The parts of the workspace: number of groups, groups, sorted slots, packed inputs.
#[derive(Clone)]
struct Routing {
    workspace: Workspace,
    slots: usize,
    /// Most groups there can be.
    groups: usize,
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
        let mut first = 0;
        while first < list.len() {
            let expert = id(list[first]);
            let run = list[first..].iter().take(MAX_COLUMNS);
            let len = run.take_while(|&&slot| id(slot) == expert).count();
            if (expert as usize) < experts {
                let group = Group { expert, first: first as u32, len: len as u32 };
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
    let route = select(1, &[matrix], precision);
    let isa = lowering.isa;
    let groups = slots.min(experts) + slots / MAX_COLUMNS;
    let sizes = Routing { workspace: Workspace::default(), slots, groups };
    let layout_of = move |len| packed_layout(isa, route, &matrix, len);
    let group_bytes = layout_of(MAX_COLUMNS).bytes();
    let workspace = lowering.workspace(sizes.packed_at() + groups * group_bytes);
    let routing = Routing { workspace, ..sizes };
    let packed_of = move |routing: &Routing, group: usize| {
        routing.workspace.start().wrapping_add(routing.packed_at() + group * group_bytes)
    };

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
        // SAFETY: the group's part of the workspace is this task's alone.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(packed_of(&table, index), layout.bytes()) };
        let mut tile = TileBytes { bytes, width: layout.columns };
        let [x] = scratch.floats([layout.depth]);
        x.fill(0.0);
        with_simd!(isa, s => s.run(#[inline(always)] || {
            for column in 0..layout.columns {
                if column < group.len as usize {
                    // SAFETY: the list has `len` slots; hazards keep writers of the input out.
                    unsafe {
                        let slot = *table.slot_list(group).add(column) as usize;
                        let (row, of_row) = (slot / ids.last(), slot % ids.last());
                        let x = &mut x[..matrix.k];
                        if input.rank() == 2 {
                            input.load([row], x);
                        } else {
                            input.load([row, of_row], x);
                        }
                    }
                } else {
                    x.fill(0.0);
                }
                pack_column(layout, x, &mut tile, column);
            }
        }));
    }));
    lowering.barrier();

    let rows = rows_per_task(isa, route, &matrix);
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
        let packed = packed_of(&routing, index).cast_const();
        let rows = block * rows..matrix.n.min((block + 1) * rows);
        RowRange { product: &product, rows, layout: layout_of(product.m), packed }
            .run(isa, route, scratch);
    }));
}
