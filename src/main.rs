//! The command line: hands over to [`nepenthe::cli`].

fn main() {
    std::process::exit(nepenthe::cli::main())
}
