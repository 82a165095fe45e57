//! Where one row's values are put into a batch and taken out again.

use std::sync::Arc;

use half::f16;

use super::{Data, Element, Tensor};

/// What a graph's input means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Token ids.
    Ids,
    /// 1 where a token is read, 0 where it is not.
    Mask,
    /// Segment of each token in a text pair.
    Types,
    /// Position of each token, counted over the tokens that the mask shows.
    Positions,
    /// The n-th of a row's [`Row::extras`].
    Extra(usize),
}

/// One axis of a row's tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dim {
    /// As long as the row's sequence; padded in a batch.
    Sequence,
    /// The same for every row.
    Fixed(usize),
}

/// One input of a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct InputSlot {
    /// The graph's name for it.
    pub name: String,
    /// What is fed to it.
    pub role: Role,
    /// The element type that it wants.
    pub element: Element,
    /// Axes after the batch axis; `[Sequence]` for ids, mask, types and positions.
    pub dims: Vec<Dim>,
}

/// One output of a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputSlot {
    /// The graph's name for it.
    pub name: String,
    /// Axes after the batch axis.
    pub dims: Vec<Dim>,
}

/// How rows of unequal length share a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// Padding follows the tokens.
    Right(u32),
    /// Padding precedes the tokens.
    Left(u32),
    /// The model has no pad token or no attention mask: only rows of one length share a batch.
    Never,
    /// A batch size of one is baked into the graph: no rows share a batch.
    Alone,
}

/// How rows become a batch of a graph's inputs, and a batch of outputs becomes rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// In the graph's order.
    pub inputs: Vec<InputSlot>,
    /// In the graph's order.
    pub outputs: Vec<OutputSlot>,
    /// What fills the gap behind or before a short row.
    pub padding: Padding,
    /// A token that the rows of one batch must hold equally often, since the graph reads it off all of them at once.
    pub counted: Option<u32>,
    /// Tokens that a row has at least; the graph runs on none that is shorter.
    pub least: usize,
}

/// One evaluation: a token sequence, and what a derived graph wants beside it.
#[derive(Clone)]
pub struct Row {
    /// Token ids, special tokens included, no padding.
    pub ids: Arc<[u32]>,
    /// Segment of each token; `None` is all zero.
    pub types: Option<Arc<[u32]>>,
    /// Whether each token is read; `None` is all true.
    pub mask: Option<Arc<[bool]>>,
    /// Values for the inputs of role [`Role::Extra`], in their order.
    pub extras: Vec<Extra>,
}

/// A row's value for one extra input.
#[derive(Clone)]
pub enum Extra {
    /// The values, row-major over the slot's axes.
    Values(Arc<[f32]>),
    /// Writes the values into the batch, on the worker's thread: rows that are cheap to describe and large
    /// to hold (points on a path between two embeddings) exist only while their batch runs.
    Fill(Fill),
}

/// Writes one row's values into its place in a batch.
pub type Fill = Arc<dyn Fn(&mut [f32]) + Send + Sync>;

/// What a graph answered for one row: one row-major vector for every output, without padding.
#[derive(Debug, Clone, PartialEq)]
pub struct RowOut {
    /// In the layout's order.
    pub values: Vec<Vec<f32>>,
}

impl Row {
    /// A row of plain token ids.
    pub fn of(ids: impl Into<Arc<[u32]>>, types: Option<Arc<[u32]>>) -> Self {
        Self { ids: ids.into(), types, mask: None, extras: Vec::new() }
    }

    /// Tokens in the row.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether the row has no token at all.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

impl Layout {
    /// Rows of different counts share no batch.
    pub fn count(&self, row: &Row) -> usize {
        self.counted.map_or(0, |token| row.ids.iter().filter(|&&id| id == token).count())
    }

    /// The inputs of a batch of `rows`, each padded to the longest.
    pub fn stack(&self, rows: &[Row]) -> Vec<(String, Tensor)> {
        let length = rows.iter().map(Row::len).max().unwrap_or(0);
        self.inputs.iter().map(|slot| (slot.name.clone(), self.stack_slot(slot, rows, length))).collect()
    }

    fn stack_slot(&self, slot: &InputSlot, rows: &[Row], length: usize) -> Tensor {
        let mut dims = vec![rows.len()];
        dims.extend(slot.dims.iter().map(|dim| match dim {
            Dim::Sequence => length,
            Dim::Fixed(size) => *size,
        }));
        let (pad_id, left) = match self.padding {
            Padding::Right(id) => (id, false),
            Padding::Left(id) => (id, true),
            Padding::Never | Padding::Alone => (0, false),
        };
        if let Role::Extra(which) = slot.role {
            let stride: usize = dims[1..].iter().product();
            let mut values = vec![0.0f32; rows.len() * stride];
            for (row, into) in rows.iter().zip(values.chunks_mut(stride.max(1))) {
                place(slot, row, &row.extras[which], length, left, into);
            }
            return Tensor { dims, data: floats(values, slot.element) };
        }
        let mut values = Vec::with_capacity(rows.len() * length);
        for row in rows {
            let gap = length - row.len();
            let pad = match slot.role {
                Role::Ids => i64::from(pad_id),
                _ => 0,
            };
            if left {
                values.extend(std::iter::repeat_n(pad, gap));
            }
            integers(slot.role, row, &mut values);
            if !left {
                values.extend(std::iter::repeat_n(pad, gap));
            }
        }
        Tensor { dims, data: integers_as(values, slot.element) }
    }

    /// The rows' outputs out of a batch's `outputs`; `lengths` are the rows' own.
    ///
    /// # Errors
    /// Names the output whose size is not what the layout says.
    pub fn unstack(&self, outputs: &[Tensor], lengths: &[usize]) -> Result<Vec<RowOut>, String> {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut rows: Vec<RowOut> = lengths.iter().map(|_| RowOut { values: Vec::new() }).collect();
        if outputs.len() != self.outputs.len() {
            return Err(format!("{} outputs instead of {}", outputs.len(), self.outputs.len()));
        }
        let left = matches!(self.padding, Padding::Left(_));
        for (slot, output) in self.outputs.iter().zip(outputs) {
            let padded: Vec<usize> = sizes(&slot.dims, longest);
            let stride: usize = padded.iter().product();
            let values = output.to_f32();
            if values.len() != stride * lengths.len() {
                return Err(format!(
                    "output `{}` has shape {:?}, not {} rows of {padded:?}",
                    slot.name,
                    output.dims,
                    lengths.len()
                ));
            }
            for ((row, &length), from) in rows.iter_mut().zip(lengths).zip(values.chunks(stride.max(1))) {
                row.values.push(trim(from, &padded, &slot.dims, length, left));
            }
        }
        Ok(rows)
    }
}

fn sizes(dims: &[Dim], length: usize) -> Vec<usize> {
    dims.iter()
        .map(|dim| match dim {
            Dim::Sequence => length,
            Dim::Fixed(size) => *size,
        })
        .collect()
}

fn integers(role: Role, row: &Row, into: &mut Vec<i64>) {
    let shown = |at: usize| row.mask.as_ref().is_none_or(|mask| mask[at]);
    match role {
        Role::Ids => into.extend(row.ids.iter().map(|&id| i64::from(id))),
        Role::Mask => into.extend((0..row.len()).map(|at| i64::from(shown(at)))),
        Role::Types => match &row.types {
            Some(types) => into.extend(types.iter().map(|&kind| i64::from(kind))),
            None => into.extend(std::iter::repeat_n(0, row.len())),
        },
        Role::Positions => {
            let mut seen = 0;
            into.extend((0..row.len()).map(|at| {
                seen += i64::from(shown(at));
                (seen - 1).max(0)
            }));
        }
        Role::Extra(_) => {}
    }
}

fn integers_as(values: Vec<i64>, element: Element) -> Data {
    match element {
        Element::I32 => Data::I32(values.into_iter().map(|v| v as i32).collect()),
        Element::Bool => Data::Bool(values.into_iter().map(|v| v != 0).collect()),
        Element::F32 => Data::F32(values.into_iter().map(|v| v as f32).collect()),
        _ => Data::I64(values),
    }
}

fn floats(values: Vec<f32>, element: Element) -> Data {
    match element {
        Element::F16 => Data::F16(values.into_iter().map(f16::from_f32).collect()),
        Element::F64 => Data::F64(values.into_iter().map(f64::from).collect()),
        _ => Data::F32(values),
    }
}

/// Puts a row's extra values into its part of the batch. Only a leading sequence axis is padded.
fn place(slot: &InputSlot, row: &Row, extra: &Extra, length: usize, left: bool, into: &mut [f32]) {
    let own: usize = sizes(&slot.dims, row.len()).iter().product();
    let offset = if left && slot.dims.first() == Some(&Dim::Sequence) {
        (length - row.len()) * into.len() / length.max(1)
    } else {
        0
    };
    let into = &mut into[offset..offset + own];
    match extra {
        Extra::Values(values) => into.copy_from_slice(values),
        Extra::Fill(fill) => fill(into),
    }
}

/// The part of `from` (of shape `padded`) that belongs to a row of `length` tokens.
fn trim(from: &[f32], padded: &[usize], dims: &[Dim], length: usize, left: bool) -> Vec<f32> {
    let Some((&outer, rest)) = padded.split_first() else { return from.to_vec() };
    let stride: usize = rest.iter().product();
    let (start, count) = match dims[0] {
        Dim::Sequence if left => (outer - length, length),
        Dim::Sequence => (0, length),
        Dim::Fixed(size) => (0, size),
    };
    let own = &from[start * stride..(start + count) * stride];
    if dims[1..].contains(&Dim::Sequence) {
        own.chunks(stride.max(1)).flat_map(|it| trim(it, rest, &dims[1..], length, left)).collect()
    } else {
        own.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(padding: Padding) -> Layout {
        let slot = |name: &str, role| InputSlot {
            name: name.into(),
            role,
            element: Element::I64,
            dims: vec![Dim::Sequence],
        };
        Layout {
            inputs: vec![
                slot("input_ids", Role::Ids),
                slot("attention_mask", Role::Mask),
                slot("position_ids", Role::Positions),
            ],
            outputs: vec![OutputSlot { name: "a".into(), dims: vec![Dim::Sequence, Dim::Sequence] }],
            padding,
            counted: None,
            least: 1,
        }
    }

    fn rows() -> Vec<Row> {
        vec![Row::of(vec![5, 6, 7], None), Row::of(vec![8, 9], None)]
    }

    #[test]
    fn short_rows_are_padded_on_the_right() {
        let batch = layout(Padding::Right(1)).stack(&rows());
        assert_eq!(batch[0].1, Tensor::i64([2, 3], vec![5, 6, 7, 8, 9, 1]));
        assert_eq!(batch[1].1, Tensor::i64([2, 3], vec![1, 1, 1, 1, 1, 0]));
        assert_eq!(batch[2].1, Tensor::i64([2, 3], vec![0, 1, 2, 0, 1, 0]));
    }

    #[test]
    fn short_rows_are_padded_on_the_left() {
        let batch = layout(Padding::Left(1)).stack(&rows());
        assert_eq!(batch[0].1, Tensor::i64([2, 3], vec![5, 6, 7, 1, 8, 9]));
        assert_eq!(batch[1].1, Tensor::i64([2, 3], vec![1, 1, 1, 0, 1, 1]));
        assert_eq!(batch[2].1, Tensor::i64([2, 3], vec![0, 1, 2, 0, 0, 1]));
    }

    #[test]
    fn both_sequence_axes_lose_their_padding() {
        let square: Vec<f32> = (0..18).map(|v| v as f32).collect();
        let output = [Tensor::f32([2, 3, 3], square)];
        let right = layout(Padding::Right(0)).unstack(&output, &[3, 2]).unwrap();
        assert_eq!(right[1].values[0], [9.0, 10.0, 12.0, 13.0]);
        let left = layout(Padding::Left(0)).unstack(&output, &[3, 2]).unwrap();
        assert_eq!(left[1].values[0], [13.0, 14.0, 16.0, 17.0]);
    }

    #[test]
    fn filled_extras_land_behind_the_padding() {
        let mut layout = layout(Padding::Left(0));
        layout.inputs = vec![InputSlot {
            name: "inputs_embeds".into(),
            role: Role::Extra(0),
            element: Element::F32,
            dims: vec![Dim::Sequence, Dim::Fixed(2)],
        }];
        let mut rows = rows();
        rows[0].extras = vec![Extra::Values(Arc::from([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))];
        rows[1].extras = vec![Extra::Fill(Arc::new(|into: &mut [f32]| into.fill(7.0)))];
        let batch = layout.stack(&rows);
        let wanted = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, 0.0, 7.0, 7.0, 7.0, 7.0];
        assert_eq!(batch[0].1, Tensor::f32([2, 3, 2], wanted));
    }

    #[test]
    fn an_output_of_another_size_is_named() {
        let error = layout(Padding::Right(0)).unstack(&[Tensor::f32([2], vec![0.0; 2])], &[3, 2]);
        assert!(error.unwrap_err().contains("output `a`"));
    }
}
