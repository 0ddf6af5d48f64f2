"""The published site: static pages of a store's runs, cases and findings, with their raw data beside them."""

from reports.site.folder import SiteError
from reports.site.publish import Published, publish

__all__ = ["Published", "SiteError", "publish"]
