"""Numbers out of records: published values, costs, uncertainty, traces, geometry."""
