//! The service's numbers, one section a run: `cargo bench --bench service -- [numbers|states|settings|soak|samples] [--quick]`.
//!
//! `derive FOLDER` tells what deriving a model's gradient costs; `profile FOLDER ROWS TOKENS` what a gradient pass spends on
//! which operators; `device FOLDER` compares workers and chunks on a device; `pass FOLDER` serves `benches/peers`;
//! `faithfulness FILE` compares explanations on the sentences of a file.
//!
//! Everything that is compared runs in turn on the same machine, and a section ends in Markdown;
//! `scripts/bench` runs them all and keeps the sections in `benches/README.md`.

mod bare;
mod device;
mod faithfulness;
mod host;
mod measure;
mod numbers;
mod pass;
mod settings;
mod soak;
mod states;

use measure::{machine, table};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|it| it != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["host", arrangement] => return host::serve(arrangement),
        ["pass", folder] => {
            pass::serve(folder.as_ref());
            return Ok(());
        }
        ["faithfulness", file] => {
            faithfulness::faithfulness(file.as_ref(), 100);
            return Ok(());
        }
        ["derive", folder] => {
            pass::derive(folder.as_ref());
            return Ok(());
        }
        ["device", folder] => {
            device::settings(folder.as_ref());
            return Ok(());
        }
        ["profile", folder, rows, tokens] => {
            pass::profile(folder.as_ref(), rows.parse()?, tokens.parse()?);
            return Ok(());
        }
        _ => {}
    }
    let quick = arguments.iter().any(|it| it == "--quick");
    let rounds = |full: usize| if quick { full.div_ceil(10) } else { full };
    let named: Vec<&str> = arguments.iter().map(String::as_str).filter(|it| !it.starts_with("--")).collect();
    let wanted = |name: &str| named.is_empty() || named.contains(&name);
    let model = numbers::model();
    println!("{}\n", machine());
    if wanted("numbers") {
        let host = host::Host::start(false);
        table(&["what", "measured", "target", "met"]);
        numbers::throughput(&model, rounds(30));
        numbers::leave_one_out(&model, &host, rounds(300));
        numbers::padding(&model);
        numbers::fairness(&model, &host, rounds(300));
        numbers::predict(&model, &host, rounds(40));
        println!();
    }
    if wanted("states") {
        let host = host::Host::start(false);
        table(&["what", "measured", "target", "met"]);
        states::units(&model, &host, rounds(30));
        println!();
    }
    if wanted("settings") {
        settings::sessions(&model, &numbers::masked_rows(&model, 400), rounds(20));
        println!();
        settings::chunks(&model, rounds(20));
        println!();
    }
    if wanted("soak") {
        soak::soak(&model, rounds(10_000) as u64);
        println!();
    }
    if wanted("samples") {
        table(&["what", "measured", "target", "met"]);
        soak::lime(&model, rounds(5_000));
        println!();
    }
    Ok(())
}
