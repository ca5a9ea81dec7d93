"""Rows of data with the habits that templates treat differently: white space, roles, tools, thinking."""

USER, ASSISTANT, SYSTEM, TOOL, DEVELOPER = "user", "assistant", "system", "tool", "developer"


def turn(role, content=None, **more):
    return {"role": role, **({} if content is None else {"content": content}), **more}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells today's weather in a <city> & its \"suburbs\".",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "A city's name"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "days": {"type": "integer"},
            },
            "required": ["city"],
        },
    },
}
TIME = {
    "type": "function",
    "function": {"name": "get_time", "description": "Tells the time.", "parameters": {"type": "object", "properties": {}}},
}


def call(name, id="call0abcd", **arguments):
    return {"type": "function", "id": id, "function": {"name": name, "arguments": arguments}}


QUESTION = turn(USER, "What is a tern?")
ANSWER = turn(ASSISTANT, "A seabird, slim and white.")

CONVERSATIONS = {
    "one answer": {"messages": [QUESTION, ANSWER]},
    "system": {"messages": [turn(SYSTEM, "Answer in one line."), QUESTION, ANSWER]},
    "three answers": {
        "messages": [
            turn(SYSTEM, "Be brief."),
            *[QUESTION, ANSWER],
            *[turn(USER, "And a terrapin?"), turn(ASSISTANT, "A turtle of brackish water.")],
            *[turn(USER, "Thanks."), turn(ASSISTANT, "You're welcome.")],
        ]
    },
    "the same answer twice": {"messages": [QUESTION, turn(ASSISTANT, "Yes."), QUESTION, turn(ASSISTANT, "Yes.")]},
    "white space": {
        "messages": [
            turn(SYSTEM, "  system \n"),
            *[turn(USER, "\n  two  spaces\t"), turn(ASSISTANT, "  starts and ends with blanks \n\n")],
            *[turn(USER, " again "), turn(ASSISTANT, "\n\nlines\n\n\nbetween\n")],
        ]
    },
    "code, quotes and other scripts": {
        "messages": [
            turn(USER, "Translate «größer» & <b>'this'</b> \"that\": {{ x }} {% if y %} 大きい 🙂"),
            turn(ASSISTANT, "```c\nint a[2] = {{1}, {2}};\\n\n```\n<i>é</i> & 'ü'"),
        ]
    },
    "a question last": {"messages": [QUESTION, ANSWER, turn(USER, "Go on.")]},
    "two questions": {"messages": [QUESTION, turn(USER, "Please."), ANSWER]},
    "two answers": {"messages": [QUESTION, ANSWER, turn(ASSISTANT, "Also a verb.")]},
    "the assistant first": {"messages": [turn(ASSISTANT, "Welcome!"), QUESTION, ANSWER]},
    "a late system turn": {"messages": [QUESTION, ANSWER, turn(SYSTEM, "Now in French."), QUESTION, turn(ASSISTANT, "Un oiseau.")]},
    "developer": {"messages": [turn(DEVELOPER, "Answer in one line."), QUESTION, ANSWER]},
    "an empty system": {"messages": [turn(SYSTEM, ""), QUESTION, ANSWER]},
    "an empty answer": {"messages": [QUESTION, turn(ASSISTANT, ""), turn(USER, "Hm?"), ANSWER]},
    "a name": {"messages": [turn(USER, "Hello.", name="Ada"), ANSWER]},
    "reasoning": {"messages": [QUESTION, turn(ASSISTANT, "A bird.", reasoning_content="It flies, so it is a bird.")]},
    "reasoning twice": {
        "messages": [
            QUESTION, turn(ASSISTANT, "A bird.", reasoning_content="It flies."),
            turn(USER, "Sure?"), turn(ASSISTANT, "Yes.", reasoning_content="Quite sure."),
        ]
    },
    "think tags": {"messages": [QUESTION, turn(ASSISTANT, "<think>\nIt flies.\n</think>\n\nA bird.")]},
    "think tags twice": {
        "messages": [
            QUESTION, turn(ASSISTANT, "<think>\nIt flies.\n</think>\n\nA bird."),
            turn(USER, "Sure?"), turn(ASSISTANT, "<think>\nQuite.\n</think>\n\nYes."),
        ]
    },
    "tools unused": {"messages": [QUESTION, ANSWER], "tools": [WEATHER]},
    "a call": {
        "messages": [
            turn(USER, "Weather in Oslo?"),
            turn(ASSISTANT, "", tool_calls=[call("get_weather", city="Oslo", days=2)]),
            turn(TOOL, "{\"temperature\": 7}", tool_call_id="call0abcd", name="get_weather"),
            turn(ASSISTANT, "It is 7 °C."),
        ],
        "tools": [WEATHER, TIME],
    },
    "a call without content": {
        "messages": [
            turn(USER, "Weather in Oslo?"),
            turn(ASSISTANT, tool_calls=[call("get_weather", city="Oslo", unit="celsius")]),
            turn(TOOL, "7", tool_call_id="call0abcd", name="get_weather"),
            turn(ASSISTANT, "It is 7 °C."),
        ],
        "tools": [WEATHER],
    },
    "two calls at once": {
        "messages": [
            turn(SYSTEM, "Use tools."),
            turn(USER, "Weather and time?"),
            turn(
                ASSISTANT,
                "Let me see.",
                tool_calls=[call("get_weather", city="Tromsø & <Bodø>"), call("get_time", "call1abcd")],
            ),
            turn(TOOL, "7", tool_call_id="call0abcd", name="get_weather"),
            turn(TOOL, "noon", tool_call_id="call1abcd", name="get_time"),
            turn(ASSISTANT, "7 °C at noon."),
            turn(USER, "Thanks."),
            turn(ASSISTANT, "Any time."),
        ],
        "tools": [WEATHER, TIME],
    },
    "a call last": {
        "messages": [turn(USER, "Time?"), turn(ASSISTANT, "", tool_calls=[call("get_time")])],
        "tools": [TIME],
    },
}
