"""Workflows as tools, called by the official client of MCP, line 1.x, which knows the handshake only."""

import asyncio

from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

from exposed import URL, define


async def main():
    name = define({"mcp": {"description": "Asks twice."}})
    async with streamable_http_client(f"{URL}/mcp") as (read, write, session_id), ClientSession(read, write) as client:
        initialized = await client.initialize()
        assert initialized.protocolVersion == "2025-11-25" and session_id() is None, initialized
        assert initialized.serverInfo.name == "workflow-api", initialized
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert tools[name].description == "Asks twice." and len(tools) >= 8, tools
        result = await client.call_tool(name, {"text": "hello"})
        run = {"run_id": result.structuredContent["run_id"]}
        assert "approval_answer" in result.content[0].text, result
        assert "What about approval, after hello?" in result.content[0].text, result
        await client.call_tool("approval_answer", {**run, "approved": True})
        await client.call_tool("run_await", run)
        await client.call_tool("approval_answer", {**run, "step_id": "words", "answer": {"text": "my words"}})
        result = await client.call_tool("run_await", run)
        assert result.structuredContent["output"] == {"text": "my words"}, result
        wrong = await client.call_tool("run_get", {"run_id": "run-x"})
        assert wrong.isError, wrong
    print("mcp 1.x: workflows are tools")


asyncio.run(main())
