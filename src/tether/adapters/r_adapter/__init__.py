"""R-Adapter: the module and its algebra, drop and folding, the method, and what can be done with states."""
