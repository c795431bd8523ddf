//! `godwit-page-server`: arguments and exit codes, nothing else.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use godwit_page_server::cli::{Arguments, Command};
use godwit_page_server::error::chain;
use godwit_page_server::serve;

fn main() -> ExitCode {
    if let Some(status) = godwit_page_server::restore::hidden_command(std::env::args_os()) {
        return ExitCode::from(u8::try_from(status).unwrap_or(1));
    }
    let arguments = Arguments::parse();
    start_log(arguments.verbose);
    let Command::Serve(serve) = arguments.command;
    let drain_limit = serve.drain_timeout();
    let served = serve.options().and_then(|options| {
        serve::run(options, drain_limit, |address| {
            // The line is for whoever started the server; that nobody reads it is no reason to stop.
            let mut out = std::io::stdout();
            let _ = writeln!(out, "listening on {address}").and_then(|()| out.flush());
        })
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("godwit-page-server: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn start_log(verbose: u8) {
    let default = match verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("warn,godwit={default}")));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
