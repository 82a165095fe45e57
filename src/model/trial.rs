//! Where a program is tried on a few rows when its model opens, to learn what it takes.

use crate::runtime::{Padding, Program, Row};

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
