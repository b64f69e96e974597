"""Reports of result files: Markdown tables, plots, an HTML page, and the measured part of README.md."""
