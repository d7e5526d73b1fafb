//! Prints the table of overloads of different shapes in docs/overload.md:
//! `cargo run -p outrigger-algorithms --release --example shapes`.
#![allow(clippy::print_stdout)]

use outrigger_algorithms::told::OVERLOADS;

fn main() {
    println!("| overload | told the capacity | Outrigger | ratio | critical |");
    println!("|---|---|---|---|---|");
    for overload in OVERLOADS {
        let [ours, told] = overload.run(1);
        println!(
            "| {} | {:.0} | {:.0} | {:.3} | {:.1} %, {:.1} % |",
            overload.name,
            told.good,
            ours.good,
            ours.good / told.good,
            100.0 * ours.critical,
            100.0 * told.critical
        );
    }
}
