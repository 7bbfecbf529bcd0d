//! A preforking web shop whose texts each customer may change: `cargo run --example widgets -- --help`.
//!
//! The master warms the cache, without a runtime, and forks its workers. Each worker serves requests on its own tokio
//! runtime, with texts and widgets from the cache. The cache works without a hook.

mod catalogue;
mod options;
mod page;
mod server;
mod shop;
mod words;

use std::error::Error;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;

use options::Options;
use shop::Shop;

rust_i18n::i18n!("examples/widgets/locales", fallback = "en", backend = words::OwnTexts);

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args_os().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", options::HELP);
            return ExitCode::SUCCESS;
        }
        Err(refused) => {
            eprintln!("widgets: {refused}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("widgets: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let listener = listen(options.port)?;
    let address = listener.local_addr()?;
    let shop = Arc::new(Shop::open(options));
    if let Err(error) = shop.warm() {
        eprintln!("widgets: the store cannot be reached ({error:#}); serving the default texts");
    }
    server::print_line(format_args!("http://{address}/  (customer {}, store {})", options.customer, options.place));
    server::serve(listener, options.workers, move || Arc::clone(&shop).router())
}

fn listen(port: u16) -> Result<TcpListener, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => format!("port {port} is in use: choose another with --port, or 0 for any free port"),
        _ => format!("listening on port {port}: {error}"),
    })?;
    listener.set_nonblocking(true).map_err(|error| format!("preparing port {port}: {error}"))?;
    Ok(listener)
}
