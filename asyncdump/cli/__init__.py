"""The command line: it imports everything, and nothing imports it.

`app` parses the arguments and calls one function for each command. That function runs the verb with the signals of
`signals`, passes its events to a listener, prints the outcome and returns the exit code.

- `app`, `options`: the commands and their options
- `run`, `verify`, `restore`, `reading`: one command, or two, each
- `dd/`: the command ``dd``, with its operands and its summary
- `signals`: what SIGINT, SIGTERM and SIGHUP do
- `progress`: the choice of a listener; `listener` their base class; `bar`, `plain`, `json_lines` the listeners
- `tables`: what is printed before and after a run
- `output`: standard output and standard error, which may stall, fail or be closed
- `logs`: structlog on stderr
"""
