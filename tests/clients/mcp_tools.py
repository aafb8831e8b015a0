"""Workflows as tools, called by the official client of MCP, in its newest revision and by the handshake of older ones."""

import asyncio

from mcp import Client
from mcp_types import ElicitResult

from exposed import URL, define


async def elicit(context, params):
    assert params.message.startswith("What about"), params
    properties = params.requested_schema["properties"]
    content = {"approved": True} if "approved" in properties else {"text": "my words"}
    return ElicitResult(action="accept", content=content)


async def main():
    name = define({"mcp": {"description": "Asks twice."}})
    async with Client(f"{URL}/mcp", elicitation_callback=elicit) as client:
        assert client.protocol_version == "2026-07-28", client.protocol_version
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert tools[name].description == "Asks twice." and len(tools) >= 8, tools
        result = await client.call_tool(name, {"text": "hello"})
        assert not result.is_error and result.structured_content == {"text": "my words"}, result
        found = await client.call_tool("workflows_search", {"query": name})
        assert found.structured_content["workflows"][0]["name"] == name, found

    async with Client(f"{URL}/mcp", mode="legacy") as client:
        assert client.protocol_version == "2025-11-25", client.protocol_version
        assert name in [tool.name for tool in (await client.list_tools()).tools]
        result = await client.call_tool(name, {"text": "hello"})
        run = {"run_id": result.structured_content["run_id"]}
        assert "approval_answer" in result.content[0].text, result
        await client.call_tool("approval_answer", {**run, "approved": True})
        await client.call_tool("run_await", run)
        await client.call_tool("approval_answer", {**run, "step_id": "words", "answer": {"text": "my words"}})
        result = await client.call_tool("run_await", run)
        assert result.structured_content["output"] == {"text": "my words"}, result
        wrong = await client.call_tool("run_get", {"run_id": "run-x"})
        assert wrong.is_error, wrong
    print("mcp: workflows are tools")


asyncio.run(main())
