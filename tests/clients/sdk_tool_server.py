"""An MCP server of the official SDK, of its line 1.x or 2.x: `python sdk_tool_server.py PORT MODE`.

MODE is `sessions`, or `stateless`, which also answers with JSON instead of event streams.
"""

import sys

import uvicorn

try:
    from mcp.server.mcpserver import Context, MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
except ImportError:
    from mcp.server.fastmcp import Context, FastMCP as MCPServer
    from mcp.server.fastmcp.exceptions import ToolError

port, mode = int(sys.argv[1]), sys.argv[2]
options = {"stateless_http": mode == "stateless", "json_response": mode == "stateless"}
old = "fastmcp" in MCPServer.__module__
server = MCPServer("adder", instructions="Adds numbers.", **(options if old else {}))


@server.tool()
async def add(a: int, b: int, ctx: Context) -> dict[str, int]:
    """Adds two numbers."""
    await ctx.report_progress(1, 2)
    return {"sum": a + b}


@server.tool()
def shout(text: str) -> str:
    """Shouts."""
    if not text:
        raise ToolError("there is nothing to shout")
    return text.upper()


app = server.streamable_http_app(**({} if old else options))
uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
