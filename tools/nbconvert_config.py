"""How `make notebooks` re-executes the book: settings of `jupyter nbconvert`.

A second run leaves every file as it was: no timing is recorded, metadata is reduced to what the
book uses, an error shown on purpose is stored as its last line (a full traceback would hold the
paths of whoever ran it), and a cell that begins with `# @title Solution`, or whose input the page
hides, is folded in Colab and in JupyterLab too.
"""

c = get_config()  # noqa: F821 - traitlets provides it

c.NbConvertApp.export_format = "notebook"
c.FilesWriter.build_directory = ""  # in place, with use_output_suffix below
c.NbConvertApp.use_output_suffix = False

c.ExecutePreprocessor.enabled = True
c.ExecutePreprocessor.record_timing = False
c.ExecutePreprocessor.timeout = 600
c.ExecutePreprocessor.extra_arguments = [
    "--InteractiveShell.xmode=Minimal",
    "--InteractiveShell.colors=nocolor",
    "--IPKernelApp.log_level=ERROR",
]

c.ClearMetadataPreprocessor.enabled = True
c.ClearMetadataPreprocessor.preserve_nb_metadata_mask = {"kernelspec", ("language_info", "name")}
c.ClearMetadataPreprocessor.preserve_cell_metadata_mask = {
    "tags",
    "mystnb",
    "cellView",
    "jupyter",
}
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}


def normalize(nb, resources):
    """Undo what an editor leaves, such as its name of the kernel; fold solutions and drawing."""
    nb.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    for cell in nb.cells:
        if cell.cell_type != "code":
            cell.metadata.clear()
            continue
        for key in FOLDED:
            cell.metadata.pop(key, None)
        drawing = "hide-input" in cell.metadata.get("tags", [])
        if drawing or cell.source.startswith("# @title Solution"):
            cell.metadata.update(FOLDED)
    return nb, resources


# After the run: merge what a cell printed, however it was cut on its way here.
c.NotebookExporter.preprocessors = [
    "nbconvert.preprocessors.CoalesceStreamsPreprocessor",
    normalize,
]
