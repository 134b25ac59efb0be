"""What a person reads afterwards: the summary, the report, tables of doses and routers, exports."""
