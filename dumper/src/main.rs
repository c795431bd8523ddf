//! `godwit`: arguments and exit codes, nothing else.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use godwit_dumper::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    godwit_page_server::keep_freed_memory();
    godwit_dumper::logging::start(cli.verbose);
    godwit_dumper::commands::run(&cli.command)
}
