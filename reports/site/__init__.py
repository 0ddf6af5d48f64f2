"""The published site: static pages of a store's runs, cases and findings, with their raw data beside them."""

from reports.site.build import Published, publish
from reports.site.folder import SiteError

__all__ = ["Published", "SiteError", "publish"]
