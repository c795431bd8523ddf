//! Exports what plugins for CRIU find by name in the program that loads them (src/sys/plugin.rs), and nothing else.

/// Functions with `#[unsafe(no_mangle)]` in src/sys/plugin.rs.
const EXPORTED: [&str; 4] =
    ["criu_get_image_dir", "add_inventory_plugin", "check_and_remove_inventory_plugin", "print_on_level"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for name in EXPORTED {
        println!("cargo::rustc-link-arg-bins=-Wl,--export-dynamic-symbol={name}");
    }
}
