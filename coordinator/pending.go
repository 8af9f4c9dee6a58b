package coordinator

import "bloomery/api/bloomery/v1/bloomeryv1connect"

// pending answers UNIMPLEMENTED for the calls that are not written yet.
type pending struct {
	bloomeryv1connect.UnimplementedRackServiceHandler
	bloomeryv1connect.UnimplementedNodeServiceHandler
}
