"""The provider's pages: the fleet and its levels, drawn from reports and from the store."""

from mfu_sdk.provider.pages.fleet import render_html
from mfu_sdk.provider.pages.routes import routes

__all__ = ["render_html", "routes"]
