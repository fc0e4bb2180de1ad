// What a Logic App needs to read one event hub: a consumer group of its own, and the right to receive from that event hub.
// A module, since the namespace may lie in another resource group.

targetScope = 'resourceGroup'

@description('Namespace of the event hub.')
param namespaceName string

@description('The event hub.')
param eventHubName string

@description('The consumer group to make.')
param consumerGroup string

@description('Identity of the Logic App.')
param principalId string

// Built-in role Azure Event Hubs Data Receiver.
var dataReceiver = 'a638d3c7-ab3a-418d-83e6-5f17a39d4fde'

resource namespace 'Microsoft.EventHub/namespaces@2024-01-01' existing = {
  name: namespaceName
}

resource eventHub 'Microsoft.EventHub/namespaces/eventhubs@2024-01-01' existing = {
  parent: namespace
  name: eventHubName
}

resource group 'Microsoft.EventHub/namespaces/eventhubs/consumergroups@2024-01-01' = {
  parent: eventHub
  name: consumerGroup
}

resource mayReceive 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(eventHub.id, principalId, dataReceiver)
  scope: eventHub
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataReceiver)
    principalId: principalId
    principalType: 'ServicePrincipal'
  }
}
