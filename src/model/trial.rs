//! Where a program is tried on a few rows when its model opens, to learn what it takes.

use super::{OpenError, OpenSettings, SpecialTokens};
use crate::runtime::{Device, Graph, Padding, Program, Row, RuntimeError, SharedWeights};

/// The longest row that is tried: beyond it, a folder's word is taken.
const LONGEST: usize = 1025;

/// A row of `length` tokens: `ids` with what stands in its middle repeated, or left out.
pub(super) fn row(ids: &[u32], length: usize) -> Row {
    let middle = ids.len().saturating_sub(1) / 2;
    let Some(repeated) = (length + 1).checked_sub(ids.len()).filter(|_| !ids.is_empty()) else {
        return Row::of(&ids[..length.min(ids.len())], None);
    };
    let fill = std::iter::repeat_n(ids[middle], repeated);
    let ids = ids[..middle].iter().copied().chain(fill).chain(ids[middle + 1..].iter().copied());
    Row::of(ids.collect::<Vec<u32>>(), None)
}

/// Tokens more than an input must have that are tried.
const LEAST: usize = 64;

/// The row of fewest tokens that runs, from `bare` on, the special tokens alone, and how many logits there are. One row
/// runs where the graph takes any.
///
/// # Errors
/// No row runs; in ONNX Runtime's words on the shortest input `ids`.
pub(super) fn least(program: &mut Program, ids: &[u32], bare: usize) -> Result<(usize, usize), RuntimeError> {
    let bare = bare.max(1);
    let mut lengths = bare..=bare.max(ids.len()) + LEAST;
    let found = lengths.find_map(|it| Some((it, program.probe_width(&row(ids, it)).ok()?)));
    found.map_or_else(|| program.probe_width(&row(ids, ids.len())).map(|width| (ids.len(), width)), Ok)
}

/// The most tokens of an input: `limit`, unless a row of so many does not run. Then it is the longest that does, found
/// by halving; a row of `least` runs. One row runs where `limit` is right.
pub(super) fn longest(
    program: &mut Program,
    ids: &[u32],
    least: usize,
    limit: Option<usize>,
) -> Option<usize> {
    let mut runs = |length| program.probe(&row(ids, length)).is_ok();
    let (mut low, mut high) = (least, limit.unwrap_or(LONGEST).min(LONGEST));
    if high <= low || runs(high) {
        return limit;
    }
    while high - low > 1 {
        let middle = low.midpoint(high);
        if runs(middle) { low = middle } else { high = middle }
    }
    Some(low)
}

/// How rows may share a batch, which the program's layout says and a run on two rows confirms; and what a caller should
/// know of it.
pub(super) fn padding(program: &Program, row: &Row) -> (Padding, Option<&'static str>) {
    let alone = (
        Padding::Alone,
        Some(
            "the graph runs one row at a time: a batch size is baked in, which takes longer; export the model with dynamic axes",
        ),
    );
    let runs_on_two = || program.run(0, &[row.clone(), row.clone()]).is_ok();
    match program.layout.padding {
        Padding::Alone => alone,
        Padding::Never if runs_on_two() => (Padding::Never, None),
        Padding::Never => alone,
        padding => match program.hides_padding(row) {
            Ok(true) => (padding, None),
            Err(_) if !runs_on_two() => alone,
            _ => (
                Padding::Never,
                Some("the graph reads padding: only rows of one length share a batch, which takes longer"),
            ),
        },
    }
}

/// The token that closes a text, if rows with and without another one change each other's logits: encoder-decoder
/// classifiers pick it out of the whole batch, and share what they find evenly among the rows.
pub(super) fn counted(forward: &Program, row: &Row, special: &SpecialTokens) -> Option<u32> {
    let token = special.sep?;
    let other = (0..u32::MAX).find(|it| !special.all.contains(it))?;
    // A graph that does not run on two rows is not asked to.
    forward.run(0, &[row.clone(), row.clone()]).ok()?;
    (!forward.counts_apart(row, token, other).unwrap_or(false)).then_some(token)
}

/// Starts the sessions that serve what was tried, in its layout, and holds them against it. A processor runs the same
/// kernels on both, and only shows that they run. CUDA's product of matrices is wrong where operands broadcast each other
/// and happen to be as many, such as rows and heads.
///
/// # Errors
/// [`OpenError`]: the graph does not run on the device, or computes something else there.
pub(super) fn serve(
    tried: &Program,
    graph: &Graph,
    weights: &SharedWeights,
    row: &Row,
    (settings, file): (&OpenSettings, &str),
) -> Result<Program, OpenError> {
    let failed = |cause| OpenError::Graph { file: file.to_owned(), cause };
    let (runtime, layout) = (&settings.runtime, tried.layout.clone());
    let most = match (runtime.device, layout.padding) {
        (Device::Cpu, _) => 0,
        (Device::Cuda(_), Padding::Alone) => 1,
        (Device::Cuda(_), _) => MOST_HEADS,
    };
    let served =
        Program::open(runtime, graph, weights, tried.kind, layout, settings.workers).map_err(failed)?;
    served.run(0, std::slice::from_ref(row)).map_err(failed)?;
    match served.strays_from(tried, row, 1..=most).map_err(failed)? {
        None => Ok(served),
        Some((rows, gap)) => {
            Err(OpenError::Strays { file: file.to_owned(), device: runtime.device, rows, gap })
        }
    }
}

/// Rows that are tried together.
const MOST_HEADS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_any_length_keep_their_ends() {
        let ids = |length| row(&[1, 7, 2], length).ids.to_vec();
        assert_eq!((ids(1), ids(2), ids(3)), (vec![1], vec![1, 2], vec![1, 7, 2]));
        assert_eq!(ids(5), [1, 7, 7, 7, 2]);
        assert_eq!(row(&[7], 3).ids[..], [7, 7, 7]);
    }
}
