// Package api holds the protobuf definition of Bloomery's interface; bloomery/v1 is the generated code.
package api
