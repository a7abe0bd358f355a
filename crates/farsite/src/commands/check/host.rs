//! What `check` looks at on this host: the configuration, its folders.

use farsite_model::config::Config;

use super::Lines;

pub fn configuration(config: &Config, lines: &mut Lines) {
    lines.ok("configuration", "reading", format!("site {}, in {}", config.site, config.folder.display()));
    let state = config.state_dir();
    match writable(&state) {
        Ok(()) => lines.ok("configuration", "state", format!("{} can be written", state.display())),
        Err(error) => lines.wrong(
            "configuration",
            "state",
            format!("{} cannot be written: {error}; create it for the agent's user", state.display()),
        ),
    }
    if config.stores.is_empty() {
        lines.wrong(
            "configuration",
            "stores",
            "none is configured; `farsite init` creates one and writes the lines",
        );
    }
}

/// Makes a file in the folder, or in the nearest one that exists, and removes it again.
fn writable(folder: &std::path::Path) -> std::io::Result<()> {
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or(folder);
    tempfile::Builder::new().prefix(".farsite-check").tempfile_in(there).map(drop)
}
