// Command bloomery-agent is the first program that init starts in the agent image. It takes no flags and never ends.
package main

import "bloomery/agent"

func main() { agent.Main() }
