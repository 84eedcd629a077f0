"""Jitted loops over plain addresses. They trust their arguments: whoever calls them has proven every extent."""
