"""Keep the pages from loading what is not beside them; repair their markup.

Jupyter Book always enables sphinx-thebe, whose scripts come from a CDN. This
book has no live cells, so they are left out.
"""

LISTENERS = {"init_thebe_core", "update_thebe_context"}


def repair_bibliography(app, pagename, templatename, context, doctree):
    """Give the entries of a bibliography the role that their list asks for.

    docutils writes a role that is deprecated, and not allowed in a list.
    """
    if "body" in context:
        context["body"] = context["body"].replace(
            'role="doc-biblioentry"', 'role="listitem"'
        )


def setup(app):
    app.setup_extension("sphinx_thebe")
    for event in ("env-before-read-docs", "doctree-resolved"):
        for listener in list(app.events.listeners[event]):
            handler = listener.handler
            if (
                handler.__module__ == "sphinx_thebe"
                and handler.__name__ in LISTENERS
            ):
                app.disconnect(listener.id)
    app.connect("html-page-context", repair_bibliography)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
